// Sixteen float lanes as one AVX-512 register.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

typedef __m512 Lanes;

inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes set1(float s) { return _mm512_set1_ps(s); }
inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
inline Lanes add(Lanes x, Lanes y) { return _mm512_add_ps(x, y); }
inline Lanes sub(Lanes x, Lanes y) { return _mm512_sub_ps(x, y); }
inline Lanes mul(Lanes x, Lanes y) { return _mm512_mul_ps(x, y); }
inline Lanes div(Lanes x, Lanes y) { return _mm512_div_ps(x, y); }
inline Lanes rough_inverse(Lanes x) { return _mm512_rcp14_ps(x); }  // to 2^-14
inline Lanes fma(Lanes x, Lanes y, Lanes z) { return _mm512_fmadd_ps(x, y, z); }
inline Lanes vmax(Lanes x, Lanes y) { return _mm512_max_ps(x, y); }
inline Lanes vmin(Lanes x, Lanes y) { return _mm512_min_ps(x, y); }
inline Lanes nearest(Lanes x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Lanes times_pow2(Lanes x, Lanes n) { return _mm512_scalef_ps(x, n); }
inline Lanes load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline void load_pairs(const void* p, Lanes& even, Lanes& odd) {
    const __m512i raw = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline void store_bf16(uint16_t* p, Lanes x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

// Sixteen 32-bit words.
typedef __m512i Words;
inline Words load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
// The same when each 16 bytes hold the first halves of four words, then the second ones.
inline Words load_split_words(const uint8_t* p) {
    const __m512i raw = _mm512_loadu_si512(p);
    return _mm512_unpacklo_epi16(raw, _mm512_bsrli_epi128(raw, 8));
}
template <int N> inline Words shift_right(Words w) { return N ? _mm512_srli_epi32(w, N) : w; }
template <int N> inline Words shift_left(Words w) { return N ? _mm512_slli_epi32(w, N) : w; }
inline Words bits_of(Words w, uint32_t mask) { return _mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(mask))); }
inline Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
inline Lanes as_floats(Words w) { return _mm512_castsi512_ps(w); }
inline Lanes to_floats(Words w) { return _mm512_cvtepi32_ps(w); }
// e2m1 by the low four bits of each word.
inline Lanes e2m1(Words w) {
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(w, values);
}
// Products of 16-bit integers: sum += a.low * b.low + a.high * b.high in each word. The addition is in assembly because GCC
// otherwise gathers all products of a step before it adds them, which spills most of a tile.
inline void dot_pairs(Words& sum, Words a, Words b) {
    const __m512i product = _mm512_madd_epi16(a, b);
    asm("vpaddd %1, %0, %0" : "+v"(sum) : "v"(product));
}
inline Words repeat_word(const uint8_t* p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}
inline Words load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Words round_words(Lanes x) { return _mm512_cvtps_epi32(x); }
// kFp4Zero + twice the e2m1 in each half of a word (its upper bits zero). The lookup gives zero for the bytes between.
inline Words fp4_codes(Words w) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm512_shuffle_epi8(table, _mm512_or_si512(w, _mm512_set1_epi32(static_cast<int>(0x80008000u))));
}
inline Lanes zero_below(Lanes x, float limit, Lanes value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), value);
}
inline bool any_nan(Lanes x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }
inline float fold_sum(Lanes x) { return _mm512_reduce_add_ps(x); }  // by halves: lane i with i + 8, then i + 4, i + 2, i + 1
inline float fold_max(Lanes x) { return _mm512_reduce_max_ps(x); }
// Those of 16 numbers that are at least `floor`, in order; returns how many. May write 16.
inline int append_from(float* out, const float* x, float floor) {
    const __m512 v = _mm512_loadu_ps(x);
    const __mmask16 keep = _mm512_cmp_ps_mask(v, _mm512_set1_ps(floor), _CMP_GE_OQ);
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(keep, v));
    return __builtin_popcount(keep);
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
