// Sixteen float lanes without any extension: four 4-wide vectors, which every compiler maps to what the target has. Only the
// multiply-add of 16-bit pairs is named: SSE2 and NEON, which compilers may assume, have it, and none finds it here.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

typedef float f4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

struct Lanes { f4 v[4]; };

#define EACH for (int i = 0; i < 4; i++)
inline Lanes set1(float s) { Lanes r; EACH r.v[i] = f4{s, s, s, s}; return r; }
inline Lanes zero() { return set1(0.0f); }
inline Lanes load(const float* p) { Lanes r; memcpy(&r, p, 64); return r; }
inline void store(float* p, Lanes a) { memcpy(p, &a, 64); }
inline Lanes add(Lanes a, Lanes b) { EACH a.v[i] += b.v[i]; return a; }
inline Lanes sub(Lanes a, Lanes b) { EACH a.v[i] -= b.v[i]; return a; }
inline Lanes mul(Lanes a, Lanes b) { EACH a.v[i] *= b.v[i]; return a; }
inline Lanes div(Lanes a, Lanes b) { EACH a.v[i] /= b.v[i]; return a; }
inline Lanes rough_inverse(Lanes x) { return div(set1(1.0f), x); }  // exact
inline Lanes fma(Lanes a, Lanes b, Lanes c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
inline Lanes vmax(Lanes a, Lanes b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline Lanes vmin(Lanes a, Lanes b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
// Nearest integer for |a| < 2^22, by the 1.5 * 2^23 trick.
inline Lanes nearest(Lanes a) {
    const Lanes magic = set1(12582912.0f);
    return sub(add(a, magic), magic);
}
// a * 2^n for integral n in [-126, 127].
inline Lanes times_pow2(Lanes a, Lanes n) {
    EACH {
        i4 e = __builtin_convertvector(n.v[i], i4);
        e = (e + 127) << 23;
        f4 p;
        memcpy(&p, &e, 16);
        a.v[i] *= p;
    }
    return a;
}
inline Lanes load_bf16(const uint16_t* p) {
    Lanes r;
    uint32_t bits[16];
    for (int i = 0; i < 16; i++) bits[i] = static_cast<uint32_t>(p[i]) << 16;
    memcpy(&r, bits, 64);
    return r;
}
// 16 pairs: the first of each pair in `even`, the second in `odd`.
inline void load_pairs(const void* p, Lanes& even, Lanes& odd) {
    EACH {
        u4 raw;
        memcpy(&raw, static_cast<const char*>(p) + 16 * i, 16);
        u4 lo = raw << 16, hi = raw & 0xffff0000u;
        memcpy(&even.v[i], &lo, 16);
        memcpy(&odd.v[i], &hi, 16);
    }
}
inline void store_bf16(uint16_t* p, Lanes a) {
    float f[16];
    uint32_t u[16];
    store(f, a);
    memcpy(u, f, 64);
    for (int i = 0; i < 16; i++) {
        const uint32_t rounded = (u[i] + 0x7fffu + ((u[i] >> 16) & 1)) >> 16;
        const bool nan = (u[i] & 0x7fffffffu) > 0x7f800000u;
        p[i] = static_cast<uint16_t>(nan ? (u[i] >> 16) | 0x40 : rounded);
    }
}
// Sixteen 32-bit words.
struct Words { u4 v[4]; };
inline Words load_words(const uint8_t* p) { Words r; memcpy(&r, p, 64); return r; }
// The same when each 16 bytes hold the first halves of four words, then the second ones.
inline Words load_split_words(const uint8_t* p) {
    typedef uint16_t h8 __attribute__((vector_size(16)));
    Words r;
    EACH {
        h8 raw;
        memcpy(&raw, p + 16 * i, 16);
        raw = __builtin_shuffle(raw, h8{0, 4, 1, 5, 2, 6, 3, 7});
        memcpy(&r.v[i], &raw, 16);
    }
    return r;
}
template <int N> inline Words shift_right(Words w) { EACH w.v[i] >>= N; return w; }
template <int N> inline Words shift_left(Words w) { EACH w.v[i] <<= N; return w; }
inline Words bits_of(Words w, uint32_t mask) { EACH w.v[i] &= mask; return w; }
inline Words either(Words a, Words b) { EACH a.v[i] |= b.v[i]; return a; }
inline Lanes as_floats(Words w) { Lanes r; memcpy(&r, &w, 64); return r; }
inline Lanes to_floats(Words w) { Lanes r; EACH r.v[i] = __builtin_convertvector((i4)w.v[i], f4); return r; }
// e2m1 by the low four bits of each word. With an exponent, its bits moved to a float's place; without, 0 or 1/2.
inline Lanes e2m1(Words w) {
    const Words size = bits_of(w, 7), sign = shift_left<31>(shift_right<3>(w));
    Words r;
    EACH {
        const u4 one_half = {126u << 23, 126u << 23, 126u << 23, 126u << 23};
        const u4 has_exponent = (u4)((i4)size.v[i] > 1), is_odd = -(size.v[i] & 1);
        const u4 large = (size.v[i] << 22) + one_half, small = is_odd & one_half;
        r.v[i] = (large & has_exponent) | (small & ~has_exponent) | sign.v[i];
    }
    return as_floats(r);
}
// Products of 16-bit integers: sum += a.low * b.low + a.high * b.high in each word.
inline void dot_pairs(u4& sum, u4 a, u4 b) {
#if defined(__SSE2__)
    const u4 product = (u4)_mm_madd_epi16((__m128i)a, (__m128i)b);
    asm("paddd %1, %0" : "+x"(sum) : "x"(product));  // GCC otherwise gathers all products of a step, which spills most of a tile
#elif defined(__ARM_NEON)
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    sum += (u4)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
    const i4 low = ((i4)(a << 16) >> 16) * ((i4)(b << 16) >> 16), high = ((i4)a >> 16) * ((i4)b >> 16);
    sum += (u4)low + (u4)high;
#endif
}
inline void dot_pairs(Words& sum, Words a, Words b) { EACH dot_pairs(sum.v[i], a.v[i], b.v[i]); }
inline Words repeat_word(const uint8_t* p) {
    uint32_t bits;
    memcpy(&bits, p, 4);
    Words r;
    EACH r.v[i] = u4{bits, bits, bits, bits};
    return r;
}
inline Words load_bytes(const uint8_t* p) { Words r; EACH r.v[i] = u4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; return r; }
inline Words round_words(Lanes x) { x = nearest(x); Words r; EACH r.v[i] = (u4)__builtin_convertvector(x.v[i], i4); return r; }
// kFp4Zero + twice the e2m1 in each half of a word (its upper bits zero): of sizes 0 to 7 it is
// size + max(size - 4, 0) + 2 max(size - 6, 0).
inline Words fp4_codes(Words w) {
    typedef int16_t s8 __attribute__((vector_size(16)));
    EACH {
        const s8 nibble = (s8)w.v[i], size = nibble & 7, minus = nibble > 7;
        const s8 twice = size + ((size - 4) & (size > 4)) + ((size > 6) & 2);
        w.v[i] = (u4)((twice ^ minus) - minus + 12);
    }
    return w;
}
// value where x >= limit, else zero (also for NaN x).
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    EACH {
        i4 keep = x.v[i] >= limit;
        i4 bits;
        memcpy(&bits, &value.v[i], 16);
        bits &= keep;
        memcpy(&value.v[i], &bits, 16);
    }
    return value;
}
inline bool any_nan(Lanes x) {
    float v[16];
    store(v, x);
    for (float f : v)
        if (f != f) return true;
    return false;
}
inline float fold_sum(Lanes x) {  // by halves: lane i with i + 8, then i + 4, i + 2, i + 1
    const f4 four = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float fold_max(Lanes x) {
    float v[16];
    store(v, x);
    for (int i = 1; i < 16; i++) v[0] = v[i] > v[0] ? v[i] : v[0];
    return v[0];
}
// Those of 16 numbers that are at least `floor`, in order; returns how many. May write 16.
inline int append_from(float* out, const float* x, float floor) {
    int count = 0;
    for (int i = 0; i < 16; i++) {
        out[count] = x[i];
        count += x[i] >= floor;
    }
    return count;
}
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
#undef EACH

}  // namespace
