// Packing: rows of a weight matrix into panels 64 outputs wide, and back (for tests and for the slow twin).
// Padding is zero, so padded columns compute zero and padded inputs contribute nothing.
#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "isa/codes.h"
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
    const float* scales;  // [rows, groups]
    int64_t scale_stride;
    std::atomic<bool>* fits;  // false once a panel has no room for its exceptions
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

// Pairs of inputs are single words of the source and of the panel, so a block of them is turned like a matrix of words.
void pack_bf16_pairs(const uint16_t* in, int64_t pairs, uint16_t* out) {
    for (int64_t i = 0; i < pairs; i++) memcpy(out + i * kPanel * 2, in + i * 2, 4);
}

void pack_bf16(const Job& job, int64_t panel, uint16_t* out) {
    const int64_t inputs = job.w->inputs, padded = padded_inputs(*job.w);
    constexpr int64_t kLine = 32;  // a cache line of source per column, 4 KiB of destination: both stay in L1
    for (int64_t first = 0; first < padded; first += kLine) {
        const int64_t last = first + kLine < padded ? first + kLine : padded;
        const bool whole = last <= inputs && job.dtype == RP_DTYPE_BF16;
        for (int64_t c = 0; c < kPanel; c++) {
            const int64_t row = source_row(*job.w, panel, c);
            const uint16_t* in = static_cast<const uint16_t*>(job.source) + row * job.stride;
            if (row >= 0 && whole) {
                pack_bf16_pairs(in + first, (last - first) / 2, out + (first / 2 * kPanel + c) * 2);
                continue;
            }
            for (int64_t i = first; i < last; i++) {
                uint16_t bits = 0;
                if (row >= 0 && i < inputs) bits = job.dtype == RP_DTYPE_BF16 ? in[i] : bf16_of(value_at(job, row, i));
                out[(i / 2 * kPanel + c) * 2 + i % 2] = bits;
            }
        }
    }
}

int exponent_of(uint16_t word) { return word >> 7 & 255; }

// The sixteen exponents that most of n words have.
void choose_exponents(const uint16_t* words, int64_t n, uint8_t* exponents) {
    uint32_t count[4][256] = {};  // apart, since neighbours often are alike
    for (int64_t i = 0; i < n; i++) count[i % 4][exponent_of(words[i])]++;
    for (int e = 0; e < 256; e++) count[0][e] += count[1][e] + count[2][e] + count[3][e];
    uint8_t order[256];
    std::iota(order, order + 256, static_cast<uint8_t>(0));
    std::partial_sort(order, order + kExponents, order + 256, [&](uint8_t a, uint8_t b) {
        return count[0][a] != count[0][b] ? count[0][a] > count[0][b] : a < b;
    });
    memcpy(exponents, order, kExponents);
}

void pack_bf16_12(const Job& job, int64_t panel) {
    const int64_t steps = steps_of(*job.w);
    thread_local std::vector<uint16_t> plain;
    plain.resize(static_cast<size_t>(steps * 128));
    pack_bf16(job, panel, plain.data());
    uint8_t* out = job.matrix + panel * job.w->panel_bytes;
    memset(out, 0, bf16_12_front_bytes);
    choose_exponents(plain.data(), steps * 128, out);
    constexpr uint8_t kOther = 255;
    uint8_t codes[256];
    memset(codes, kOther, sizeof codes);
    for (int code = 0; code < kExponents; code++) codes[out[code]] = static_cast<uint8_t>(code);

    std::vector<uint32_t> exceptions;
    uint8_t* to = out + bf16_12_front_bytes;
    for (int64_t step = 0; step < steps; step++, to += bf16_12_step_bytes) {
        const uint16_t* words = plain.data() + step * 128;
        uint8_t code[128], byte[128], all = 0;
        for (int i = 0; i < 128; i++) byte[i] = static_cast<uint8_t>((words[i] >> 8 & 0x80) | (words[i] & 0x7f));
        for (int i = 0; i < 128; i++) all |= code[i] = codes[exponent_of(words[i])];
        for (int i = 0; i < 128 && all == kOther; i++) {
            if (code[i] != kOther) continue;
            exceptions.push_back(static_cast<uint32_t>((step * 128 + i) << 8 | exponent_of(words[i])));
            code[i] = 0;
        }
        for (int i = 0; i < 64; i += 8) {
            for (int j = 0; j < 8; j++) to[bf16_12_byte(i) + j] = static_cast<uint8_t>(code[i + j] | code[64 + i + j] << 4);
            memcpy(to + 64 + bf16_12_byte(i), byte + i, 8);
            memcpy(to + 128 + bf16_12_byte(i), byte + 64 + i, 8);
        }
    }
    if (static_cast<int64_t>(exceptions.size()) > bf16_12_most_exceptions(steps)) {
        job.fits->store(false);
        exceptions.clear();
    }
    exceptions.resize(static_cast<size_t>(bf16_12_exception_bytes(steps) / 4), kNoException);
    memcpy(to, exceptions.data(), exceptions.size() * 4);
}

// Line (64 bytes) and byte in it of output c and input i, within the steps of their group.
struct Place { int64_t line; int byte, shift; };
template <int32_t kFormat>
Place place_of(int64_t i, int64_t c) {
    constexpr int64_t kInputs = step_inputs(kFormat);
    const int64_t line = i / kInputs * 4 + c / 16;
    const int column = static_cast<int>(c % 16), k = static_cast<int>(i % kInputs);
    if (kFormat == RP_INT8) return {line, int8_byte(column, k), 0};
    if (kFormat == RP_FP8) return {line, fp8_byte(column, k), 0};
    return {line, int4_byte(column, k), k < 4 ? 0 : 4};
}
Place place_of(int32_t format, int64_t i, int64_t c) {
    if (format == RP_INT8) return place_of<RP_INT8>(i, c);
    if (format == RP_FP8) return place_of<RP_FP8>(i, c);
    return place_of<RP_INT4>(i, c);
}

int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// The code nearest to w / scale; ties to even.
uint8_t code_of(int32_t format, float w, float scale) {
    const float v = scale != 0.0f ? w / scale : 0.0f;
    if (format == RP_INT8) return static_cast<uint8_t>(clamp(static_cast<int>(std::nearbyint(v)), -127, 127) + kInt8Zero);
    if (format == RP_INT4) return static_cast<uint8_t>(clamp(static_cast<int>(std::nearbyint(v)), -8, 7) + kInt4Zero);
    const float size = std::fabs(v);
    const uint8_t sign = std::signbit(v) ? 1 : 0;
    if (format == RP_MXFP4) {
        int best = 0;
        for (int code = 1; code < 8; code++) {
            const float there = std::fabs(0.5f * kFp4Twice[code] - size), here = std::fabs(0.5f * kFp4Twice[best] - size);
            if (there < here || (there == here && code % 2 == 0)) best = code;
        }
        return static_cast<uint8_t>(best | sign << 3);
    }
    int low = 0, high = 0x7e;  // 448; 0x7f is NaN
    while (low < high) {       // the largest code not above `size`
        const int middle = (low + high + 1) / 2;
        if (fp8_value(static_cast<uint8_t>(middle)) <= size) low = middle;
        else high = middle - 1;
    }
    if (low < 0x7e) {
        const float under = size - fp8_value(static_cast<uint8_t>(low)), over = fp8_value(static_cast<uint8_t>(low + 1)) - size;
        if (over < under || (over == under && low % 2)) low++;
    }
    return static_cast<uint8_t>(low | sign << 7);
}

uint8_t zero_code(int32_t format) { return format == RP_INT8 ? kInt8Zero : format == RP_INT4 ? kInt4Zero : 0; }

void store_scale(int32_t format, uint8_t* scales, int64_t c, float value) {
    if (format == RP_INT4) {
        const uint16_t bits = bf16_of(value);
        memcpy(scales + 2 * c, &bits, 2);
    } else if (format == RP_MXFP4) {
        scales[c] = static_cast<uint8_t>(clamp(value > 0.0f ? std::ilogb(value) + 127 : 0, 0, 254));
    } else {
        memcpy(scales + 4 * c, &value, 4);
    }
}
float load_scale(int32_t format, const uint8_t* scales, int64_t c) {
    if (format == RP_MXFP4) return e8m0_value(scales[c]);
    if (format == RP_INT4) {
        uint16_t bits;
        memcpy(&bits, scales + 2 * c, 2);
        return of_bf16(bits);
    }
    float value;
    memcpy(&value, scales + 4 * c, 4);
    return value;
}

// Where a group's scales and steps lie in its panel.
struct Group { int64_t scales, steps, inputs; };
Group group_of(const PackedWeight& w, int64_t g) {
    if (!w.group) return {steps_of(w) * 256, 0, padded_inputs(w)};
    const int64_t bytes = scale_bytes(w.format) + w.group / step_inputs(w.format) * 256;
    return {g * bytes, g * bytes + scale_bytes(w.format), w.group};
}
int64_t groups_of(const PackedWeight& w) { return w.group ? padded_inputs(w) / w.group : 1; }

// A stored code as the kernels keep it.
template <int32_t kFormat>
uint8_t kept_code(uint8_t stored) {
    if (kFormat == RP_INT8) return static_cast<uint8_t>(stored + kInt8Zero);
    if (kFormat == RP_INT4) return static_cast<uint8_t>((stored + kInt4Zero) & 15);
    return stored;
}

constexpr int64_t kBlock = 128;  // inputs whose codes are worked out together: a multiple of every format's step

// code_of for whole numbers, four at a time: adding and taking away 1.5 * 2^23 rounds to nearest even.
void round_to_codes(const float* w, int64_t n, float scale, float low, float high, int zero, uint8_t* codes) {
    constexpr float kWhole = 12582912.0f;
    for (int64_t i = 0; i < n; i++) {
        const float v = scale != 0.0f ? w[i] / scale : 0.0f;
        const float within = v > low ? (v < high ? v : high) : low;  // NaN is low, as a conversion makes it
        codes[i] = static_cast<uint8_t>(static_cast<int>((within + kWhole) - kWhole) + zero);
    }
}

// Codes of inputs [first, first + n) of a row.
template <int32_t kFormat>
void codes_of_row(const Job& job, int64_t row, int64_t first, int64_t n, float scale, uint8_t* codes) {
    if (job.dtype == RP_DTYPE_CODE) {
        const uint8_t* stored = static_cast<const uint8_t*>(job.source) + row * job.stride + first;
        for (int64_t i = 0; i < n; i++) codes[i] = kept_code<kFormat>(stored[i]);
        return;
    }
    float values[kBlock];
    for (int64_t i = 0; i < n; i++) values[i] = value_at(job, row, first + i);
    if (kFormat == RP_INT8) round_to_codes(values, n, scale, -127.0f, 127.0f, kInt8Zero, codes);
    else if (kFormat == RP_INT4) round_to_codes(values, n, scale, -8.0f, 7.0f, kInt4Zero, codes);
    else for (int64_t i = 0; i < n; i++) codes[i] = code_of(kFormat, values[i], scale);
}

// Codes of output c and n inputs (whole steps) to their places in the panel, whose step of the first one is at `steps`.
template <int32_t kFormat>
void place_codes(const uint8_t* codes, int64_t n, int64_t c, uint8_t* steps) {
    constexpr int64_t kInputs = step_inputs(kFormat);
    for (int64_t first = 0; first < n; first += kInputs) {
        uint8_t* line = steps + (first / kInputs * 4 + c / 16) * 64;
        const int column = static_cast<int>(c % 16);
        for (int k = 0; k < 4; k++) {
            uint8_t byte = codes[first + k];
            if (kInputs == 8) byte = static_cast<uint8_t>(byte | codes[first + 4 + k] << 4);
            line[kFormat == RP_FP8 ? fp8_byte(column, k) : int8_byte(column, k)] = byte;
        }
    }
}

template <int32_t kFormat>
void pack_codes(const Job& job, int64_t panel) {
    static_assert(int4_byte(3, 2) == int8_byte(3, 2) && int4_byte(3, 6) == int8_byte(3, 2), "one place for four or eight inputs");
    const PackedWeight& w = *job.w;
    uint8_t* out = job.matrix + panel * w.panel_bytes;
    memset(out, 0, static_cast<size_t>(w.panel_bytes));
    for (int64_t g = 0; g < groups_of(w); g++) {
        const Group group = group_of(w, g);
        for (int64_t c = 0; c < kPanel; c++) {
            const int64_t row = source_row(w, panel, c), first = g * group.inputs;
            if (row >= 0) store_scale(w.format, out + group.scales, c, job.scales[row * job.scale_stride + g]);
            const float scale = load_scale(w.format, out + group.scales, c);
            const int64_t real = row < 0 ? 0 : std::min(group.inputs, w.inputs - first);
            for (int64_t at = 0; at < group.inputs; at += kBlock) {
                const int64_t n = std::min(kBlock, group.inputs - at), filled = std::clamp<int64_t>(real - at, 0, n);
                uint8_t codes[kBlock];
                if (filled > 0) codes_of_row<kFormat>(job, row, first + at, filled, scale, codes);
                memset(codes + filled, zero_code(kFormat), static_cast<size_t>(n - filled));
                place_codes<kFormat>(codes, n, c, out + group.steps + at / step_inputs(kFormat) * 256);
            }
        }
    }
}

float unpacked(const PackedWeight& w, const uint8_t* panel, int64_t c, int64_t input) {
    if (w.format == RP_F32) {
        float value;
        memcpy(&value, panel + (input * kPanel + c) * 4, 4);
        return value;
    }
    if (w.format == RP_BF16 || w.format == RP_BF16_12) {  // made plain
        uint16_t bits;
        memcpy(&bits, panel + ((input / 2 * kPanel + c) * 2 + input % 2) * 2, 2);
        return of_bf16(bits);
    }
    const Group group = group_of(w, w.group ? input / w.group : 0);
    const Place place = place_of(w.format, input % group.inputs, c);
    const uint8_t byte = panel[group.steps + place.line * 64 + place.byte];
    const float scale = load_scale(w.format, panel + group.scales, c);
    if (w.format == RP_INT8) return static_cast<float>(byte - kInt8Zero) * scale;
    if (w.format == RP_INT4) return static_cast<float>((byte >> place.shift & 15) - kInt4Zero) * scale;
    if (w.format == RP_MXFP4) return 0.5f * static_cast<float>(kFp4Twice[byte >> place.shift & 15]) * scale;
    return fp8_value(byte) * scale;
}

void pack_region(Team& team, int, void* context) {
    const Job& job = *static_cast<const Job*>(context);
    team.each(panels_of(*job.w), [&](int64_t panel, int64_t) {
        if (job.w->format == RP_F32) pack_f32(job, panel);
        else if (job.w->format == RP_BF16) pack_bf16(job, panel, reinterpret_cast<uint16_t*>(job.matrix + panel * job.w->panel_bytes));
        else if (job.w->format == RP_BF16_12) pack_bf16_12(job, panel);
        else if (job.w->format == RP_INT8) pack_codes<RP_INT8>(job, panel);
        else if (job.w->format == RP_INT4) pack_codes<RP_INT4>(job, panel);
        else if (job.w->format == RP_MXFP4) pack_codes<RP_MXFP4>(job, panel);
        else pack_codes<RP_FP8>(job, panel);
    });
}

bool sensible(const PackedWeight& w) {
    if (w.format < 0 || w.format >= RP_NUM_FORMATS || (w.glu && w.outputs % 2)) return false;
    const bool integer = w.format == RP_INT8 || w.format == RP_INT4 || w.format == RP_MXFP4;
    if (w.activation_bits != 16 && !(w.activation_bits == 8 && integer)) return false;
    if (w.format == RP_F32 || w.format == RP_BF16) return w.group == 0;
    if (w.format == RP_BF16_12) return w.group == 0 && steps_of(w) <= bf16_12_most_steps;
    if (w.format == RP_INT8 && w.group == 0) return true;
    if (w.format == RP_MXFP4) return w.group == 32;
    if (w.format == RP_FP8) return w.group == 128;
    return w.group == 32 || w.group == 64 || w.group == 128;
}

}  // namespace
}  // namespace rp

extern "C" {

int64_t rp_packed_bytes(PackedWeight* weight) {
    using namespace rp;
    if (!sensible(*weight)) return -1;
    weight->panel_bytes = panel_bytes_of(*weight);
    return weight->num_matrices * panels_of(*weight) * weight->panel_bytes;
}

int32_t rp_pack(const PackedWeight* weight, uint8_t* data, int64_t index, const void* source, int64_t stride,
                int32_t source_dtype, const float* scales, int64_t scale_stride) {
    using namespace rp;
    const bool whole = weight->format == RP_F32 || weight->format == RP_BF16 || weight->format == RP_BF16_12;
    if (source_dtype == RP_DTYPE_CODE && whole) return -1;
    std::atomic<bool> fits{true};
    Job job{weight, data + index * panels_of(*weight) * weight->panel_bytes, source, stride, source_dtype, scales, scale_stride, &fits};
    parallel(pack_region, &job);
    return fits ? 0 : 1;
}

int32_t rp_unpack(const PackedWeight* weight, int64_t index, float* dense, int64_t stride) {
    using namespace rp;
    std::vector<uint16_t> plain(static_cast<size_t>(weight->format == RP_BF16_12 ? steps_of(*weight) * 128 : 0));
    for (int64_t panel = 0; panel < panels_of(*weight); panel++) {
        const uint8_t* from = panel_at(*weight, index, panel);
        if (weight->format == RP_BF16_12) {
            kernels().expand_bf16_12(from, steps_of(*weight), plain.data());
            from = reinterpret_cast<const uint8_t*>(plain.data());
        }
        for (int64_t c = 0; c < kPanel; c++) {
            const int64_t row = source_row(*weight, panel, c);
            for (int64_t i = 0; row >= 0 && i < weight->inputs; i++) dense[row * stride + i] = unpacked(*weight, from, c, i);
        }
    }
    return 0;
}
}
