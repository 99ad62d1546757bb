// Puts a step's keys and values into their slots, in the format of the cache.
#include "kv.h"

#include "../isa/codes.h"

namespace rp {
namespace {

Workspace workspace(const void* raw, int64_t, int) {
    const KvWriteOp& op = *static_cast<const KvWriteOp*>(raw);
    return {0, 2 * (round_up(op.key_dim, 16) + round_up(op.v_dim, 16)) * 4};
}

uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// Magnitude codes of |x| <= 448, to nearest even. Below 2^-6 an added 2^14 leaves the multiple of 2^-9 in the last bits.
uint8_t fp8_code(float x) {
    const uint32_t bits = bits_of(x) & 0x7fffffffu, sign = bits_of(x) >> 31 << 7;
    const uint32_t normal = ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3);
    const uint32_t small = bits_of((x < 0 ? -x : x) + 16384.0f) & 15u;
    return static_cast<uint8_t>(sign | (bits < 0x3c800000u ? small : normal));
}
// Sign and magnitude, to nearest even.
uint8_t int8_code(float x) {
    const uint32_t magnitude = bits_of((x < 0 ? -x : x) + 8388608.0f) & 255u;
    return static_cast<uint8_t>(bits_of(x) >> 31 << 7 | magnitude);
}

// Codes of one token's channels; returns their scale.
float quantise(const float* x, int64_t n, int32_t format, const KernelTable& t, uint8_t* codes) {
    const float largest = t.largest(x, n), limit = format == RP_INT8 ? 127.0f : 448.0f;
    const float inverse = largest > 0.0f ? limit / largest : 0.0f;
    if (format == RP_INT8) for (int64_t i = 0; i < n; i++) codes[i] = int8_code(x[i] * inverse);
    else for (int64_t i = 0; i < n; i++) codes[i] = fp8_code(x[i] * inverse);
    return largest / limit;
}

template <class T> void put_keys(const T* k, int64_t first, int64_t n, int64_t token, bool wide, uint8_t* sub) {
    T* keys = reinterpret_cast<T*>(sub);
    if (wide) for (int64_t i = 0; i < n; i++) keys[(first + i) * kSub + token] = k[i];
    else for (int64_t i = 0; i < n; i++) keys[((first + i) / 2 * kSub + token) * 2 + (first + i) % 2] = k[i];
}
template <class T> void put_values(const T* v, int64_t n, int64_t v_pad, int64_t token, bool wide, uint8_t* sub) {
    T* values = reinterpret_cast<T*>(sub) + (wide ? token * v_pad : token / 2 * v_pad * 2 + token % 2);
    for (int64_t c = 0; c < n; c++) values[wide ? c : 2 * c] = v[c];
}

// A token's first vector is its key or its latent (n channels), its second its value or its rotary key (m).
template <class T> void put(const KvLayout& layout, const T* first, const T* second, int64_t n, int64_t m,
                            int64_t token, uint8_t* sub) {
    uint8_t* keys = sub + layout.scale_bytes;
    put_keys(first, 0, n, token, layout.wide, keys);
    if (layout.latent) put_keys(second, n, m, token, layout.wide, keys);
    else put_values(second, m, layout.v_pad, token, layout.wide, keys + layout.key_bytes);
}

void write_token(const KvWriteOp& op, const KvLayout& layout, const Region& region, int64_t row, int64_t head) {
    const int64_t slot = op.slots[row];
    if (slot < 0) return;
    if (slot >= op.num_slots) { region.error.store(kBadSlot); return; }
    const int64_t token = slot % op.block_size, n = layout.latent ? op.v_dim : op.key_dim, m = layout.latent ? op.key_dim - n : op.v_dim;
    uint8_t* sub = op.cache + slot / op.block_size * op.block_bytes + head * layout.head_bytes + token / kSub * layout.sub_bytes;
    const void* first = offset(op.k, row * op.k_stride + head * n, op.dtype);
    const void* second = offset(op.v, row * op.v_stride + head * m, op.dtype);
    const int64_t at = token % kSub;
    if (!layout.coded && !layout.wide && op.dtype == RP_DTYPE_BF16) {
        put(layout, static_cast<const uint16_t*>(first), static_cast<const uint16_t*>(second), n, m, at, sub);
        return;
    }
    Carver carve(region.local);
    float *a = carve.take<float>(n), *b = carve.take<float>(m);
    region.table.widen(first, op.dtype, n, a);
    region.table.widen(second, op.dtype, m, b);
    if (layout.wide) { put(layout, a, b, n, m, at, sub); return; }
    uint8_t *codes_a = carve.take<uint8_t>(2 * n), *codes_b = carve.take<uint8_t>(2 * m);
    if (layout.coded) {
        float* scales = reinterpret_cast<float*>(sub);
        scales[at] = quantise(a, n, op.format, region.table, codes_a);
        scales[kSub + at] = quantise(b, m, op.format, region.table, codes_b);
        put(layout, codes_a, codes_b, n, m, at, sub);
    } else {  // a float32 model over a bf16 cache
        region.table.narrow(a, RP_DTYPE_BF16, n, codes_a);
        region.table.narrow(b, RP_DTYPE_BF16, m, codes_b);
        put(layout, reinterpret_cast<uint16_t*>(codes_a), reinterpret_cast<uint16_t*>(codes_b), n, m, at, sub);
    }
}

void body(const void* raw, int64_t rows, Region& region) {
    const KvWriteOp& op = *static_cast<const KvWriteOp*>(raw);
    const KvLayout layout(op);
    const int64_t items = rows * op.heads, size = region.team.size();
    for (int64_t i = items * region.thread / size; i < items * (region.thread + 1) / size; i++)
        write_token(op, layout, region, i / op.heads, i % op.heads);
}

CodeTable make_table(int32_t format) {
    CodeTable table;
    for (int code = 0; code < 128; code++) {
        const uint32_t bits = bits_of(format == RP_INT8 ? static_cast<float>(code) : fp8_value(static_cast<uint8_t>(code)));
        table.low[code] = static_cast<uint8_t>(bits >> 16);
        table.high[code] = static_cast<uint8_t>(bits >> 24);
        table.values[code] = static_cast<uint16_t>(bits >> 16);
        table.values[code | 128] = static_cast<uint16_t>(bits >> 16 | 0x8000);
    }
    return table;
}
const CodeTable kInt8Table = make_table(RP_INT8), kFp8Table = make_table(RP_FP8);

}  // namespace

const CodeTable& code_table(int32_t format) { return format == RP_INT8 ? kInt8Table : kFp8Table; }

extern const Operator kKvWrite{workspace, body};

}  // namespace rp
