// Sixteen float lanes as two AVX2 registers.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

struct Lanes { __m256 a, b; };

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes set1(float s) { const __m256 v = _mm256_set1_ps(s); return {v, v}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline Lanes add(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes sub(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes mul(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes div(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Lanes rough_inverse(Lanes x) { return div(set1(1.0f), x); }  // exact
inline Lanes fma(Lanes x, Lanes y, Lanes z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Lanes vmax(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes vmin(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Lanes nearest(Lanes x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 pow2_of(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Lanes times_pow2(Lanes x, Lanes n) { return {_mm256_mul_ps(x.a, pow2_of(n.a)), _mm256_mul_ps(x.b, pow2_of(n.b))}; }
inline __m256 widen8(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline Lanes load_bf16(const uint16_t* p) { return {widen8(p), widen8(p + 8)}; }
inline void load_pairs(const void* p, Lanes& even, Lanes& odd) {
    const __m256i low = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(static_cast<const __m256i*>(p) + 1);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(low, mask)), _mm256_castsi256_ps(_mm256_and_si256(high, mask))};
}
inline __m256i round8(__m256 x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
}
inline void store_bf16(uint16_t* p, Lanes x) {
    const __m256i packed = _mm256_packus_epi32(round8(x.a), round8(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// Sixteen 32-bit words.
struct Words { __m256i a, b; };
inline Words load_words(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
// The same when each 16 bytes hold the first halves of four words, then the second ones.
inline Words load_split_words(const uint8_t* p) {
    const Words raw = load_words(p);
    return {_mm256_unpacklo_epi16(raw.a, _mm256_bsrli_epi128(raw.a, 8)), _mm256_unpacklo_epi16(raw.b, _mm256_bsrli_epi128(raw.b, 8))};
}
template <int N> inline Words shift_right(Words w) { return {_mm256_srli_epi32(w.a, N), _mm256_srli_epi32(w.b, N)}; }
template <int N> inline Words shift_left(Words w) { return {_mm256_slli_epi32(w.a, N), _mm256_slli_epi32(w.b, N)}; }
inline Words bits_of(Words w, uint32_t mask) {
    const __m256i m = _mm256_set1_epi32(static_cast<int>(mask));
    return {_mm256_and_si256(w.a, m), _mm256_and_si256(w.b, m)};
}
inline Words either(Words x, Words y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline Lanes as_floats(Words w) { return {_mm256_castsi256_ps(w.a), _mm256_castsi256_ps(w.b)}; }
inline Lanes to_floats(Words w) { return {_mm256_cvtepi32_ps(w.a), _mm256_cvtepi32_ps(w.b)}; }
// e2m1 by the low four bits of each word: a size by three of them, a sign by the fourth.
inline __m256 e2m1_of(__m256i w) {
    const __m256 size = _mm256_permutevar8x32_ps(_mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f), w);
    return _mm256_or_ps(size, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(w, 3), 31)));
}
inline Lanes e2m1(Words w) { return {e2m1_of(w.a), e2m1_of(w.b)}; }
// Products of 16-bit integers: sum += a.low * b.low + a.high * b.high in each word. The addition is in assembly because GCC
// otherwise gathers all products of a step before it adds them, which spills most of a tile.
inline void dot_pairs(Words& sum, Words a, Words b) {
    const __m256i low = _mm256_madd_epi16(a.a, b.a), high = _mm256_madd_epi16(a.b, b.b);
    asm("vpaddd %1, %0, %0" : "+x"(sum.a) : "x"(low));
    asm("vpaddd %1, %0, %0" : "+x"(sum.b) : "x"(high));
}
inline Words repeat_word(const uint8_t* p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    const __m256i v = _mm256_set1_epi32(bits);
    return {v, v};
}
inline Words load_bytes(const uint8_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(raw), _mm256_cvtepu8_epi32(_mm_bsrli_si128(raw, 8))};
}
inline Words round_words(Lanes x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
// kFp4Zero + twice the e2m1 in each half of a word (its upper bits zero). The lookup gives zero for the bytes between.
inline __m256i fp4_codes_of(__m256i w) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, _mm256_or_si256(w, _mm256_set1_epi32(static_cast<int>(0x80008000u))));
}
inline Words fp4_codes(Words w) { return {fp4_codes_of(w.a), fp4_codes_of(w.b)}; }
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    const __m256 l = _mm256_set1_ps(limit);
    return {_mm256_and_ps(value.a, _mm256_cmp_ps(x.a, l, _CMP_GE_OQ)), _mm256_and_ps(value.b, _mm256_cmp_ps(x.b, l, _CMP_GE_OQ))};
}
inline bool any_nan(Lanes x) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))) != 0;
}
inline float fold_sum(Lanes x) {  // by halves: lane i with i + 8, then i + 4, i + 2, i + 1
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
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
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
