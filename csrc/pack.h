// Geometry of packed weights: what every operator needs to find a panel, and every tile to walk it.
//
// A panel is its k-steps of 256 bytes. Grouped formats put the scales of a group's 64 outputs before the group's steps;
// int8 with one scale per output puts them (float32) after the last step. Panels of RP_BF16_12 are laid out by bf16_12.h. Functions are static: units compiled for an
// ISA must not lend their instructions to the others through the linker.
#pragma once
#include "abi.h"
#include "bf16_12.h"
#include "isa.h"

namespace rp {

static constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static constexpr int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Inputs consumed by one k-step of a panel.
static constexpr int64_t step_inputs(int32_t format) {
    return format == RP_F32 ? 1 : format == RP_BF16 || format == RP_BF16_12 ? 2 : format == RP_INT8 || format == RP_FP8 ? 4 : 8;
}
constexpr int64_t kActivationGroup = 128;  // inputs per scale of a quantised activation where weights have no groups
static inline int64_t scale_inputs(const PackedWeight& w) { return w.group ? w.group : kActivationGroup; }
// Bytes of 64 scales: float32, bfloat16 (int4) or powers of two (mxfp4).
static constexpr int64_t scale_bytes(int32_t format) { return format == RP_INT4 ? 128 : format == RP_MXFP4 ? 64 : 256; }

static inline int64_t padded_inputs(const PackedWeight& w) {
    return round_up(w.inputs, w.group ? w.group : step_inputs(w.format));
}
static inline int64_t steps_of(const PackedWeight& w) { return padded_inputs(w) / step_inputs(w.format); }
// Of a panel, those that every tile reads.
static inline int64_t read_bytes_of(const PackedWeight& w) {
    if (w.format == RP_BF16_12) return bf16_12_front_bytes + steps_of(w) * bf16_12_step_bytes;
    const int64_t scales = w.group ? padded_inputs(w) / w.group : w.format == RP_INT8 ? 1 : 0;
    return steps_of(w) * 256 + scales * scale_bytes(w.format);
}
static inline int64_t panel_bytes_of(const PackedWeight& w) {
    return read_bytes_of(w) + (w.format == RP_BF16_12 ? bf16_12_exception_bytes(steps_of(w)) : 0);
}
static inline int64_t panels_of(const PackedWeight& w) {
    return w.glu ? ceil_div(w.outputs / 2, kPanel / 2) : ceil_div(w.outputs, kPanel);
}
static inline const uint8_t* panel_at(const PackedWeight& w, int64_t matrix, int64_t panel) {
    return w.data + (matrix * panels_of(w) + panel) * w.panel_bytes;
}
// The source row that column c of a panel holds, or -1 for padding.
static inline int64_t source_row(const PackedWeight& w, int64_t panel, int64_t c) {
    if (!w.glu) {
        const int64_t row = panel * kPanel + c;
        return row < w.outputs ? row : -1;
    }
    const int64_t half = w.outputs / 2, feature = panel * (kPanel / 2) + c % (kPanel / 2);
    return feature < half ? feature + (c < kPanel / 2 ? 0 : half) : -1;
}

}  // namespace rp
