// Packing: rows of a weight matrix into panels 64 outputs wide, and back (for tests and for the slow twin).
// Padding is zero, so padded columns compute zero and padded inputs contribute nothing.
#include "pack.h"

#include <cstring>

#include "team.h"

namespace rp {
namespace {

uint16_t bf16_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
float of_bf16(uint16_t b) {
    const uint32_t u = static_cast<uint32_t>(b) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

struct Job {
    const PackedWeight* w;
    uint8_t* matrix;  // first panel of the matrix being packed
    const void* source;
    int64_t stride;
    int32_t dtype;
};

float value_at(const Job& job, int64_t row, int64_t i) {
    const int64_t at = row * job.stride + i;
    return job.dtype == RP_DTYPE_F32 ? static_cast<const float*>(job.source)[at]
                                     : of_bf16(static_cast<const uint16_t*>(job.source)[at]);
}

void pack_f32(const Job& job, int64_t panel) {
    float* out = reinterpret_cast<float*>(job.matrix + panel * job.w->panel_bytes);
    for (int64_t c = 0; c < kPanel; c++) {
        const int64_t row = source_row(*job.w, panel, c);
        for (int64_t i = 0; i < job.w->inputs; i++) out[i * kPanel + c] = row < 0 ? 0.0f : value_at(job, row, i);
    }
}

void pack_bf16(const Job& job, int64_t panel) {
    uint16_t* out = reinterpret_cast<uint16_t*>(job.matrix + panel * job.w->panel_bytes);
    const int64_t inputs = job.w->inputs, padded = padded_inputs(*job.w);
    constexpr int64_t kBlock = 32;  // a cache line of source per column, 4 KiB of destination: both stay in L1
    for (int64_t first = 0; first < padded; first += kBlock) {
        const int64_t last = first + kBlock < padded ? first + kBlock : padded;
        for (int64_t c = 0; c < kPanel; c++) {
            const int64_t row = source_row(*job.w, panel, c);
            const uint16_t* in = static_cast<const uint16_t*>(job.source) + row * job.stride;
            for (int64_t i = first; i < last; i++) {
                uint16_t bits = 0;
                if (row >= 0 && i < inputs) bits = job.dtype == RP_DTYPE_BF16 ? in[i] : bf16_of(value_at(job, row, i));
                out[(i / 2 * kPanel + c) * 2 + i % 2] = bits;
            }
        }
    }
}

void pack_region(Team& team, int, void* context) {
    const Job& job = *static_cast<const Job*>(context);
    team.each(panels_of(*job.w), [&](int64_t panel, int64_t) {
        if (job.w->format == RP_F32) pack_f32(job, panel);
        else pack_bf16(job, panel);
    });
}

}  // namespace
}  // namespace rp

extern "C" {

int64_t rp_packed_bytes(PackedWeight* weight) {
    using namespace rp;
    if (weight->format != RP_F32 && weight->format != RP_BF16) return -1;
    if (weight->glu && weight->outputs % 2) return -1;
    weight->panel_bytes = steps_of(*weight) * 256;
    return weight->num_matrices * panels_of(*weight) * weight->panel_bytes;
}

int32_t rp_pack(const PackedWeight* weight, uint8_t* data, int64_t index, const void* source, int64_t stride,
                int32_t source_dtype, const float*, int64_t) {
    using namespace rp;
    Job job{weight, data + index * panels_of(*weight) * weight->panel_bytes, source, stride, source_dtype};
    parallel(pack_region, &job);
    return 0;
}

int32_t rp_unpack(const PackedWeight* weight, int64_t index, float* dense, int64_t stride) {
    using namespace rp;
    for (int64_t panel = 0; panel < panels_of(*weight); panel++) {
        const uint8_t* in = panel_at(*weight, index, panel);
        for (int64_t c = 0; c < kPanel; c++) {
            const int64_t row = source_row(*weight, panel, c);
            if (row < 0) continue;
            for (int64_t i = 0; i < weight->inputs; i++) {
                float value;
                if (weight->format == RP_F32) memcpy(&value, in + (i * kPanel + c) * 4, 4);
                else {
                    uint16_t bits;
                    memcpy(&bits, in + ((i / 2 * kPanel + c) * 2 + i % 2) * 2, 2);
                    value = of_bf16(bits);
                }
                dense[row * stride + i] = value;
            }
        }
    }
    return 0;
}
}
