// Half a step of bf16 in 12 bits, by byte shuffles: each quarter, 32 bytes, becomes a vector of either line.
class Halves {
public:
    explicit Halves(const uint8_t* panel) {
        const __m256i exponents = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel)));
        high_ = _mm256_and_si256(_mm256_srli_epi16(exponents, 1), _mm256_set1_epi8(0x7f));
        low_ = _mm256_slli_epi16(_mm256_and_si256(exponents, _mm256_set1_epi8(1)), 7);
    }
    void take(const uint8_t* step, int64_t half, uint16_t* words) const {
        const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) {
            const __m256i codes = load_bytes(step + 32 * part), byte = load_bytes(step + 64 + 64 * half + 32 * part);
            const __m256i code = _mm256_and_si256(half ? _mm256_srli_epi16(codes, 4) : codes, _mm256_set1_epi8(15));
            const __m256i high = _mm256_or_si256(_mm256_shuffle_epi8(high_, code), _mm256_and_si256(byte, sign));
            const __m256i low = _mm256_or_si256(_mm256_shuffle_epi8(low_, code), _mm256_andnot_si256(sign, byte));
            __m256i* to = reinterpret_cast<__m256i*>(words + 16 * part);
            _mm256_storeu_si256(to, _mm256_unpacklo_epi8(low, high));
            _mm256_storeu_si256(to + 2, _mm256_unpackhi_epi8(low, high));
        }
    }

private:
    static __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

    __m256i high_, low_;  // of the exponent that a code stands for: its upper seven bits, and its lowest where a mantissa ends
};
