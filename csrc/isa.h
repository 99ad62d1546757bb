// What an instruction set must provide. Operators (ops/) are compiled once for the baseline and call through the table;
// each table is compiled in its own translation unit with its own flags and chosen at run time. The order in which an
// output's products are added is the same for every number of rows in a tile, so no result depends on its batch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "abi.h"

namespace rp {

constexpr int kPanel = 64;   // outputs side by side in a packed panel
constexpr int kMaxRows = 32;  // rows of the tallest tile of any ISA

// Memory that a tile fetches, evenly over its steps: one range in the first half of its work, the other in the second.
struct Share {
    const uint8_t* at[2];
    int64_t bytes[2];
};

// out[r * 64 + c] = sum over k of x[r][k] * panel[k][c].
struct Tile {
    const uint8_t* panel;
    const uint8_t* const* x;   // prepared rows, at one stride if the format wants so many `even`
    float* out;
    const uint8_t* panel_next; // a panel that this thread reads soon, or this one
    int64_t steps;             // k-steps of 256 (or fewer) bytes
    int64_t panel_bytes;       // that the tile reads
    Share share;               // of panels to come
    bool follows;              // the panel is not fetched yet: the tile does so just ahead of itself, and the next one's beginning
    int32_t first_column, columns;  // of the panel's outputs; all 64 unless the format `splits`
    int32_t rows;              // 1 .. max_rows
    int32_t group_steps;       // steps per scale of the activations (and of the weights, when scaled by group)
    bool grouped;              // weights are scaled by group: scales lie before each group; else after the last step
};

// One weight format under one ISA.
struct FormatKernels {
    int max_rows;
    bool splits;  // tiles can take one half of a panel's outputs
    // Bytes of an activation row in the form the tile wants it; 0: rows are read where they are.
    int64_t (*row_bytes)(const PackedWeight& w, int32_t x_dtype);
    void (*prepare)(const PackedWeight& w, const void* x, int32_t x_dtype, void* row);
    void (*tile)(const Tile&);
    // From this many tiles to a panel on, it is first made one of bf16 for its tiles; 0: never.
    int64_t expands_from = 0;
    // From this many rows on, tiles want them at one stride; 0: never.
    int64_t even_from = 0;
};

// Attention of a tile of query rows against the sub-blocks (16 tokens) of one span (see ops/attention.cpp).
struct AttendTile {
    const uint8_t* const* q;         // rows in the type the kernels want, key_dim (even) wide
    const uint8_t* const* keys;      // one pointer per sub-block
    const uint8_t* const* values;
    const uint8_t* const* prefetch;  // per sub-block, lines that are wanted next; or null
    float* scores;                   // rows x score_stride
    uint32_t* weights;               // rows x score_stride / 2 pairs of bf16, for kernels that keep weights so
    float* out;                      // rows x v_dim, accumulated
    float* max;                      // per row: what its weights are relative to, a score near the largest so far,
    float* sums;                     // and the sum of its weights so far, in 16 lanes
    const int64_t *begin, *end;      // per row: the keys that it sees, of [0, valid); none if begin >= end
    const float* key_scales;         // of coded keys, per token, or null
    const float* value_scales;       // of coded values
    const float* rotary;             // second scores, with scales of their own, of a coded latent; or null
    const float* rotary_scales;
    int64_t score_stride, sub_blocks, key_dim, v_dim, valid;  // valid tokens of the span: [0, valid) may be read
    float scale;
    int32_t rows;
};

// Attention over keys and values of one element type: a tile is weighed, then its values are summed.
struct AttendKernels {
    int rows;         // of the tallest tile
    int32_t q_dtype;  // of prepared query rows
    void (*scores)(const AttendTile&);  // scores = q . k
    // Weights, exp((q . k - max) scale), 0 for keys a row does not see. A row whose max moves is scaled to it.
    void (*weigh)(const AttendTile&);
    void (*values)(const AttendTile&);  // out += weights . v
    void (*turn)(const uint8_t* keys, int64_t v_dim, uint8_t* values);  // one sub-block's first v_dim key channels as values
};

struct CodeTable;

struct KernelTable {
    const char* name;
    FormatKernels formats[RP_NUM_FORMATS];
    FormatKernels formats_a8[RP_NUM_FORMATS];     // with activations of 8 bits; no tile: not for this format

    AttendKernels attend_bf16;   // bf16 queries, bf16 pairs
    AttendKernels attend_mixed;  // float32 queries, bf16 pairs
    AttendKernels attend_f32;    // float32 throughout
    // 8-bit codes (n a multiple of 64) as bf16; asks for the n bytes at `ahead` meanwhile, if it is given.
    void (*expand)(const uint8_t* codes, int64_t n, const CodeTable& table, const uint8_t* ahead, uint16_t* out);

    // Rows of n floats or bf16s. Reductions use 16 lanes and one fixed tree.
    float (*exp_sum)(float* x, int64_t n, float max, float scale);  // x = exp((x - max) * scale); returns the sum
    float (*max_of)(const float* x, int64_t n);
    float (*largest)(const float* x, int64_t n);  // magnitude
    int64_t (*best)(const float* x, int64_t n);   // first index of the largest; -1 where any is NaN
    float (*sum_from)(const float* x, int64_t n, float floor);                  // of those that are at least floor
    int64_t (*collect)(const float* x, int64_t n, float floor, float* out);     // those, in order; out has room for 16 more
    float (*sum_squares)(const void* x, int32_t dtype, int64_t n, float centre);
    float (*sum_of)(const void* x, int32_t dtype, int64_t n);
    void (*normalise)(const void* x, int32_t dtype, const void* w, int32_t w_dtype, float w_offset, const void* bias,
                      float centre, float scale, int64_t n, void* y);
    void (*add_scaled)(const void* a, const void* b, float scale, int32_t dtype, int64_t n, void* y);
    // Its exponential and quotient are as exact as the type of y shows.
    void (*glu)(const float* gate, const float* up, int64_t n, int32_t activation, float alpha, float limit, int32_t dtype, void* y);
    void (*glu_typed)(const void* gate, const void* up, int32_t dtype, int64_t n, int32_t activation, float alpha,
                      float limit, void* y);
    void (*widen)(const void* x, int32_t dtype, int64_t n, float* y);
    void (*narrow)(const float* x, int32_t dtype, int64_t n, void* y);   // round to nearest even
    void (*axpy)(const float* x, const float* bias, float scale, int64_t n, float* y);  // y += scale * (x + bias)
    void (*map)(const void* x, int32_t dtype, float scale, float limit, int64_t n, void* y);  // scaled, then clipped
    void (*scale)(float* x, float factor, int64_t n);
    void (*multiply)(float* x, const float* y, int64_t n);                            // x *= y
    // Two softmax sums over disjoint keys become one, in place: n accumulated channels and 16 lanes of weights each,
    // relative to exp(max * scale).
    void (*merge)(float* acc, float* lanes, float* max, const float* from, const float* from_lanes, float from_max,
                  float scale, int64_t n);
    void (*divide)(const float* x, const float* lanes, int64_t n, int32_t dtype, void* y);  // y = x / sum of 16 lanes
    // One head: channels i and i + half (or 2i and 2i + 1) turned by the angle whose cosine and sine are given.
    void (*rotate)(const void* x, int32_t dtype, const float* cos, const float* sin, int64_t half, int32_t interleaved, void* y);

    void (*expand_bf16_12)(const uint8_t* panel, int64_t steps, uint16_t* plain);  // a panel of RP_BF16_12 becomes one of RP_BF16

    double (*read_sum)(const uint8_t* data, int64_t bytes);  // probe: touches every byte
    double (*peak)(int32_t format, int64_t iterations);      // probe: flops done in registers
};

const KernelTable& kernels();  // the table in use

inline const FormatKernels& kernels_for(const KernelTable& table, const PackedWeight& w) {
    return (w.activation_bits == 8 ? table.formats_a8 : table.formats)[w.format];
}

extern const KernelTable kPortableKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxEmulatedKernels;
#if defined(RP_HAS_AMX)
extern const KernelTable kAmxKernels;
#endif
#endif

}  // namespace rp
