// The C ABI between the library and ridgepoint/kernels/native.py. Plain structs; Python mirrors them field by field.
//
// Every operator is one struct whose first member is an OpHeader. `rp_run` runs a list of them in one parallel region:
// a list of one is an ordinary call, a list of a whole step is a recorded step. Pointers are borrowed for the call.
#pragma once
#include <cstdint>

extern "C" {

// Increase when the meaning of a packed weight's bytes changes: packed files on disk are rebuilt then.
enum { RP_ABI_VERSION = 7, RP_LAYOUT_VERSION = 1 };

enum RpIsa {
    RP_PORTABLE = 0, RP_AVX2 = 1, RP_AVX512 = 2, RP_AVX512_VNNI = 3, RP_AVX512_BF16 = 4, RP_AMX = 5,
    RP_AMX_EMULATED = 6,  // RP_AMX without its instructions: for tests, never chosen by itself
    RP_NUM_ISAS = 7
};
enum RpFormat { RP_F32 = 0, RP_BF16 = 1, RP_INT8 = 2, RP_INT4 = 3, RP_MXFP4 = 4, RP_FP8 = 5, RP_BF16_12 = 6, RP_NUM_FORMATS = 7 };
// CODE is only what rp_pack takes: a byte per weight, already quantised (two's complement, e2m1 or e4m3 by format).
enum RpDtype { RP_DTYPE_F32 = 0, RP_DTYPE_BF16 = 1, RP_DTYPE_CODE = 2 };
enum RpOp {
    RP_OP_LINEAR = 0, RP_OP_MOE, RP_OP_NORM, RP_OP_ROPE, RP_OP_ROUTE, RP_OP_EMBED, RP_OP_GLU, RP_OP_KV_WRITE,
    RP_OP_ATTENTION, RP_OP_ADD_SHARED, RP_OP_ROPE_TABLES, RP_OP_MAP, RP_OP_SAMPLE, RP_OP_UNLIFTED_LINEAR,
    RP_OP_LIFTED_ATTENTION,
    RP_NUM_OPS
};
// Where an op's row count comes from when a recorded step is replayed.
enum RpRows { RP_ROWS_FIXED = 0, RP_ROWS_TOKENS = 1, RP_ROWS_LOGITS = 2 };

struct OpHeader {
    int32_t op;
    int32_t rows_from;  // RpRows
    int64_t rows;       // used as it is when rows_from is FIXED; the capacity when recorded
};

// `num_matrices` matrices [outputs, inputs], packed: [matrix][panel][step][line], a panel being 64 outputs.
// `glu`: panels hold 32 gate columns then the 32 up columns of the same features; outputs is then 2 F.
struct PackedWeight {
    int32_t format, glu;
    int64_t num_matrices, outputs, inputs;
    int64_t group;         // inputs per scale; 0: none
    int64_t panel_bytes;   // one panel of one matrix, scales included
    const uint8_t* data;
    int32_t activation_bits;  // 16, or 8: activations are rounded to 8 bits by group (integer codes only)
    int32_t pad;
};

struct LinearOp {
    OpHeader header;
    const PackedWeight* weight;
    const void* x;        // [rows, inputs] (times num_matrices when heads)
    void* y;              // [rows, outputs]
    const float* bias;    // [outputs] or null
    int64_t x_stride, y_stride;  // elements between rows
    int64_t x_head_stride;       // when heads: matrix h acts on x[:, h * x_head_stride :]
    int32_t x_dtype, y_dtype;    // RpDtype
    int32_t heads;        // 1: one matrix per head; matrix h writes y[:, h * outputs :]
    int32_t pad;
};

struct MoeOp {
    OpHeader header;
    const PackedWeight* gate_up;  // glu
    const PackedWeight* down;
    const void* x;                // [rows, D]
    void* y;                      // [rows, D]
    const float* weights;         // [rows, K]
    const int64_t* expert_ids;    // [rows, K]
    const float* bias_gate_up;    // [E, 2 F] gate then up, or null
    const float* bias_down;       // [E, D] or null
    int64_t x_stride, y_stride, top_k;
    int32_t x_dtype, y_dtype;
    int32_t activation;           // 0: SwiGLU; 1: clamped (gpt-oss)
    float alpha, limit;
    int32_t pad;
};

struct NormOp {
    OpHeader header;
    const void* x;         // [rows, groups, width]
    const void* delta;     // null, or added first: sum = x + delta_scale * delta
    void* sum;             // where that sum goes when delta is given
    void* y;
    const void* weight;    // [width], dtype as x (f32 when weight_f32)
    const void* bias;      // [width] or null: layer norm when mean_centred
    int64_t x_stride, delta_stride, sum_stride, y_stride;  // elements between rows
    int64_t groups, width;
    float eps, delta_scale;
    int32_t dtype, mean_centred, weight_dtype;
    float weight_offset;   // 1 for families that store weight - 1
};

struct RopeOp {
    OpHeader header;
    const void* x;         // [rows, heads, width]
    void* y;
    const float* cos;      // [rows, half]
    const float* sin;
    int64_t x_stride, x_head_stride, y_stride, table_stride, heads, width, half;
    int32_t dtype, interleaved;
};

struct RopeTablesOp {
    OpHeader header;
    const int64_t* positions;
    const float* inv_freq;  // [half]
    float* cos;             // [rows, half], times magnitude
    float* sin;
    int64_t half;
    float magnitude, pad;
};

// scores: 0 softmax, 1 sigmoid, 2 softmax over the chosen, 3 sparsemixer (the k-th best's share of what is within its jitter).
struct RouteOp {
    OpHeader header;
    const float* logits;      // [rows, E]
    const float* correction;  // [E] or null
    float* weights;           // [rows, K]
    int64_t* expert_ids;      // [rows, K]
    int64_t num_experts, top_k, num_groups, topk_groups;
    int32_t scores, normalise, group_top2, pad;
    float scale, jitter;
};

struct EmbedOp {
    OpHeader header;
    const int64_t* ids;
    const void* table;
    void* y;
    int64_t width, vocab, y_stride;
    int32_t table_dtype, y_dtype;
    float scale, pad;
};

struct GluOp {
    OpHeader header;
    const void* x;  // [rows, 2 F], gate then up
    void* y;        // [rows, F]
    int64_t width, x_stride, y_stride;
    int32_t dtype, activation;
    float alpha, limit;
};

// y = min(max(scale * x, -limit), limit).
struct MapOp {
    OpHeader header;
    const void* x;  // [rows, width]
    void* y;
    int64_t width, x_stride, y_stride;
    int32_t dtype;
    float scale, limit, pad;
};

struct AddSharedOp {
    OpHeader header;
    const void* routed;
    const void* shared;
    const void* gate;  // [rows] or null
    void* y;
    int64_t width, routed_stride, shared_stride, gate_stride, y_stride;
    int32_t dtype, pad;
};

// KV caches: see ops/kv.h for a block's layout in each format (f32, bf16, int8 or fp8). `latent`: MLA, one head, k the
// latents (v_dim channels), v the rotary keys (the rest of key_dim), values none.
struct KvWriteOp {
    OpHeader header;
    const void* k;           // [rows, heads, key_dim]
    const void* v;           // [rows, heads, v_dim]
    const int64_t* slots;    // [rows] block * block_size + offset; negative: not written
    uint8_t* cache;
    int64_t block_bytes, block_size, num_slots, heads, key_dim, v_dim, k_stride, v_stride;
    int32_t dtype, format;   // of k and v; of the cache
    int32_t latent, pad;
};

struct AttentionOp {
    OpHeader header;                // rows: tokens
    const void* q;                  // [rows, H, key_dim - rope_dim]; latent: absorbed
    const void* q_rope;             // [rows, H, rope_dim], the rest of each query; null where there is none
    void* y;                        // [rows, H, v_dim]
    const uint8_t* cache;
    const int64_t* query_starts;    // [B + 1]
    const int64_t* context_lens;    // [B], the step's own tokens included
    const int64_t* block_tables;    // [B, table_stride]
    const float* sinks;             // [H] or null
    const int64_t* num_seqs;        // B, read at replay
    const int64_t* prompt_lens;     // [B], for which rows are lifted (ops/lifted.h); null: none
    int64_t block_bytes, block_size, table_stride, heads, kv_heads, key_dim, rope_dim, v_dim;
    int64_t q_stride, q_head_stride, q_rope_stride, y_stride, window, lift_tokens;
    int32_t dtype, format;          // of q and y; of the cache
    int32_t latent;
    int32_t lifted;                 // 1: attends for the lifted rows; 0: for the others
    float scale;                    // positive
    int32_t pad;
};

// A LinearOp on the rows that `attention` would attend for.
struct UnliftedLinearOp {
    OpHeader header;
    LinearOp linear;
    const AttentionOp* attention;
};

// Latent attention for the lifted rows: latents become keys `w_uk @ latent` beside the rotary key, and values `w_uv @ latent`.
struct LiftedAttentionOp {
    OpHeader header;
    AttentionOp latents;        // as for absorbed queries, but q is [rows, H, nope_dim] and y [rows, H, out_dim]
    const void* w_uk;           // [H, nope_dim, v_dim], rows dense; nope_dim even
    const void* w_uv;           // [H, out_dim, v_dim]
    int64_t nope_dim, out_dim;
    int32_t w_dtype, pad;       // float32 when q is
};

// How one row of logits becomes a token. Neutral: temperature 1 (0: greedy), top_k 0, top_p 1, min_p 0, repetition 1, 0, 0.
struct SampleRow {
    double temperature, top_p, min_p, uniform, repetition, presence, frequency;
    int64_t top_k;
    int64_t num_seen;        // distinct tokens of prompt and output, and how often each is in the output
    const int64_t* seen;
    const int64_t* counts;
    int64_t num_added;       // tokens whose logits are added to
    const int64_t* added;
    const float* addends;
    int64_t num_top;         // log-probabilities wanted besides the token's; -1: none at all
};

struct SampleOp {
    OpHeader header;
    const float* logits;     // [rows, vocab]
    const SampleRow* rules;  // [rows]
    int64_t* ids;            // [rows]; -1 where the logits are not numbers
    float* logprobs;         // [rows, 1 + most_top], of the logits as given
    int64_t* top_ids;        // [rows, most_top]
    int64_t vocab, stride, most_top;
};

struct FileChunk {
    int64_t offset, bytes;
    uint64_t checksum;
};

int32_t rp_abi_version();
int32_t rp_layout_version();
const char* rp_last_error();

// ISA: the best one this processor has, the one in use, and forcing one (0 on success).
int32_t rp_isa_supported(int32_t isa);
int32_t rp_isa_current();
int32_t rp_isa_force(int32_t isa);
// Whether its tiles read weights of a format as they lie; they are made plain before where not.
int32_t rp_isa_reads(int32_t format);

// Threads of the pool, the caller included. Spinning: microseconds a worker stays awake after its last work.
int32_t rp_threads();
int32_t rp_set_threads(int32_t threads, int32_t spin_us);

// Zeroed memory in huge pages where the system gives them.
void* rp_alloc(int64_t bytes);
void rp_free(void* memory, int64_t bytes);

// Maps a file read-only, in huge pages that are held in memory; null where the system does not grant that.
void* rp_map_file(int32_t fd, int64_t bytes);
void rp_unmap_file(void* memory, int64_t bytes);
// Reads chunks of a file to `memory` + offset (fd -1: it is mapped there) and checks them, by all threads. Returns `count`, or a
// chunk that is not as it should be, with errno in `error` where reading failed.
int64_t rp_take_chunks(int32_t fd, uint8_t* memory, const FileChunk* chunks, int64_t count, int32_t* error);
uint64_t rp_checksum(const uint8_t* data, int64_t num_bytes);

// Sizes in bytes of all panels; and packing of matrix `index` (rows `stride` elements apart) into place: 1 where the exponents of
// some panel are too many for RP_BF16_12.
int64_t rp_packed_bytes(PackedWeight* weight);
int32_t rp_pack(const PackedWeight* weight, uint8_t* data, int64_t index, const void* source, int64_t stride,
                int32_t source_dtype, const float* scales, int64_t scale_stride);
int32_t rp_unpack(const PackedWeight* weight, int64_t index, float* dense, int64_t stride);

// Runs `count` operators, in order, in one parallel region. tokens / logit_rows replace recorded row counts.
int32_t rp_run(const void* const* ops, int64_t count, int64_t tokens, int64_t logit_rows);
// The same, with seconds per op (thread 0's clock, barrier included).
int32_t rp_profile(const void* const* ops, int64_t count, int64_t tokens, int64_t logit_rows, double* seconds);

// All threads write bytes, or read whole pieces of 256 KiB and say how many seconds that took. Pages nobody wrote are all the same page of
// zeros, and reading them would measure a cache.
void rp_fill(uint8_t* data, int64_t bytes);
double rp_read_s(const uint8_t* data, int64_t bytes);
// flop/s of the current ISA's bf16 and f32 products, measured now.
double rp_probe_peak(int32_t format, int32_t milliseconds);
}
