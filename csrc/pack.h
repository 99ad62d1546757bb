// Geometry of packed weights: what every operator needs to find a panel.
#pragma once
#include "abi.h"
#include "isa.h"

namespace rp {

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
constexpr int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Inputs consumed by one k-step of a panel.
constexpr int64_t step_inputs(int32_t format) {
    return format == RP_F32 ? 1 : format == RP_BF16 ? 2 : format == RP_INT8 ? 4 : 8;
}
inline int64_t padded_inputs(const PackedWeight& w) {
    return round_up(w.inputs, w.group ? w.group : step_inputs(w.format));
}
inline int64_t steps_of(const PackedWeight& w) { return padded_inputs(w) / step_inputs(w.format); }
inline int64_t panels_of(const PackedWeight& w) {
    return w.glu ? ceil_div(w.outputs / 2, kPanel / 2) : ceil_div(w.outputs, kPanel);
}
inline const uint8_t* panel_at(const PackedWeight& w, int64_t matrix, int64_t panel) {
    return w.data + (matrix * panels_of(w) + panel) * w.panel_bytes;
}
// The source row that column c of a panel holds, or -1 for padding.
inline int64_t source_row(const PackedWeight& w, int64_t panel, int64_t c) {
    if (!w.glu) {
        const int64_t row = panel * kPanel + c;
        return row < w.outputs ? row : -1;
    }
    const int64_t half = w.outputs / 2, feature = panel * (kPanel / 2) + c % (kPanel / 2);
    return feature < half ? feature + (c < kPanel / 2 ? 0 : half) : -1;
}

}  // namespace rp
