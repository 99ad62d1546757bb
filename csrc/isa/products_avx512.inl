// Products of a pair of inputs of bf16 by AVX-512 without the bf16 product: two of float32, the even input first.
inline void add_products(__m512* acc, __m512i a, __m512i b, const uint8_t* row, int64_t k) {
    const float* x = reinterpret_cast<const float*>(row) + 2 * k;
    const __m512 first = set1(x[0]), second = set1(x[1]);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    acc[0] = fma(first, _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), acc[0]);
    acc[1] = fma(first, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc[1]);
    acc[0] = fma(second, _mm512_castsi512_ps(_mm512_and_si512(a, high)), acc[0]);
    acc[1] = fma(second, _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc[1]);
}
