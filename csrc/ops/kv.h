// How a KV block of one layer is laid out, in each format it may be kept in.
//
// For each KV head, sub-blocks of 16 tokens. A sub-block of bf16, int8 or fp8 holds keys [key_dim / 2][16][2] and values
// [8][v_dim][2], so that a tile of queries multiplies them as it multiplies a packed weight; one of f32 holds keys
// [key_dim][16] and values [16][v_dim]; v_dim is rounded up to 16. 8-bit formats put float32 scales before that: sixteen of
// the keys, sixteen of the values. A token's scale is its own largest magnitude, so its codes never depend on its neighbours.
//
// A latent cache (MLA) has one head and no values: they are the first v_dim channels of its keys. Its second sixteen scales
// are those of the channels after them, the rotary ones.
#pragma once
#include "op.h"

namespace rp {

constexpr int64_t kSub = 16;  // tokens of a sub-block

static inline bool is_coded(int32_t format) { return format == RP_INT8 || format == RP_FP8; }

struct KvLayout {
    int64_t key_dim, v_dim, v_pad, scale_bytes, key_bytes, sub_bytes, head_bytes;
    bool coded, wide, latent;  // 8-bit codes; float32; MLA

    template <class Op> explicit KvLayout(const Op& op)
        : key_dim(op.key_dim), v_dim(op.v_dim), v_pad(round_up(op.v_dim, kSub)), coded(is_coded(op.format)),
          wide(op.format == RP_F32), latent(op.latent != 0) {
        const int64_t element = coded ? 1 : wide ? 4 : 2;
        scale_bytes = coded ? 2 * kSub * 4 : 0;
        key_bytes = round_up(key_dim * kSub * element, 64);
        sub_bytes = scale_bytes + key_bytes + (latent ? 0 : v_pad * kSub * element);
        head_bytes = op.block_size / kSub * sub_bytes;
    }
};

// Tiles for queries of `dtype` over such blocks.
inline const AttendKernels& attend_kernels(const KernelTable& t, const KvLayout& layout, int32_t dtype) {
    return layout.wide ? t.attend_f32 : dtype == RP_DTYPE_F32 ? t.attend_mixed : t.attend_bf16;
}

// The bf16 of every code; and of its 128 magnitudes (bit 7 is its sign) as two tables of bytes.
struct CodeTable {
    uint16_t values[256];
    alignas(64) uint8_t low[128];
    alignas(64) uint8_t high[128];
};
const CodeTable& code_table(int32_t format);

}  // namespace rp
