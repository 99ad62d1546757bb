// Half a step of bf16 in 12 bits, by AVX-512: two byte lookups give the bytes of 64 exponents, which take in signs and mantissas and
// interleave to two lines of bf16.

class Halves {
public:
    explicit Halves(const uint8_t* panel) {
        const __m512i exponents = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel)));
        const __m512i one = _mm512_set1_epi8(1);
        high_ = _mm512_and_si512(_mm512_srli_epi16(exponents, 1), _mm512_set1_epi8(0x7f));
        low_ = _mm512_slli_epi16(_mm512_and_si512(exponents, one), 7);
    }
    // Two lines of bf16 from 64 codes (the nibble below; what lies above is ignored) and 64 bytes of sign and mantissa.
    void take(__m512i codes, const uint8_t* bytes, __m512i& a, __m512i& b) const {
        const __m512i code = _mm512_and_si512(codes, _mm512_set1_epi8(15)), byte = _mm512_loadu_si512(bytes);
        const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
        const __m512i high = _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(high_, code), byte, sign, 0xf8);  // | (byte & sign)
        const __m512i low = _mm512_ternarylogic_epi32(_mm512_shuffle_epi8(low_, code), byte, sign, 0xf4);    // | (byte & ~sign)
        a = _mm512_unpacklo_epi8(low, high);
        b = _mm512_unpackhi_epi8(low, high);
    }
    void take(const uint8_t* step, int64_t half, uint16_t* words) const {
        __m512i codes = _mm512_loadu_si512(step), a, b;
        if (half) codes = _mm512_srli_epi16(codes, 4);
        take(codes, step + 64 + 64 * half, a, b);
        _mm512_storeu_si512(words, a);
        _mm512_storeu_si512(words + 32, b);
    }

private:
    __m512i high_, low_;  // of the exponent that a code stands for: its upper seven bits, and its lowest where a mantissa ends
};
