// Half a step of bf16 in 12 bits, by byte shuffles: each quarter, 32 bytes, becomes a vector of either line.
inline void expand_half(const uint8_t* step, int64_t half, const uint8_t* exponents, uint16_t* words) {
    const auto load = [](const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(exponents)));
    const __m256i high_table = _mm256_and_si256(_mm256_srli_epi16(table, 1), _mm256_set1_epi8(0x7f));
    const __m256i low_table = _mm256_slli_epi16(_mm256_and_si256(table, _mm256_set1_epi8(1)), 7);
    const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
    for (int part = 0; part < 2; part++) {
        const __m256i codes = load(step + 32 * part), byte = load(step + 64 + 64 * half + 32 * part);
        const __m256i code = _mm256_and_si256(half ? _mm256_srli_epi16(codes, 4) : codes, _mm256_set1_epi8(15));
        const __m256i high = _mm256_or_si256(_mm256_shuffle_epi8(high_table, code), _mm256_and_si256(byte, sign));
        const __m256i low = _mm256_or_si256(_mm256_shuffle_epi8(low_table, code), _mm256_andnot_si256(sign, byte));
        __m256i* to = reinterpret_cast<__m256i*>(words + 16 * part);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi8(low, high));
        _mm256_storeu_si256(to + 2, _mm256_unpackhi_epi8(low, high));
    }
}
