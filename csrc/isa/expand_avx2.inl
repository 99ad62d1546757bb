// Codes of 8 bits as bf16 by byte shuffles: the 128 magnitudes are eight tables of sixteen, each of which gives zero for
// the codes of the others.
void shuffle_expand(const uint8_t* codes, int64_t n, const CodeTable& table, const uint8_t* ahead, uint16_t* out) {
    const auto part = [](const uint8_t* bytes, int i) {
        return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i)));
    };
    for (int64_t i = 0; i < n; i += 32) {
        if (ahead && i % 64 == 0) prefetch(ahead + i);
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
        const __m256i sign = _mm256_and_si256(raw, _mm256_set1_epi8(static_cast<char>(0x80)));
        __m256i at = _mm256_xor_si256(raw, sign), low = _mm256_setzero_si256(), high = sign;
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            // 0x70 to 0x7f for this table's magnitudes; the others saturate beyond 0x80, where a shuffle gives zero.
            const __m256i mine = _mm256_adds_epu8(at, _mm256_set1_epi8(0x70));
            low = _mm256_or_si256(low, _mm256_shuffle_epi8(part(table.low, j), mine));
            high = _mm256_or_si256(high, _mm256_shuffle_epi8(part(table.high, j), mine));
            at = _mm256_sub_epi8(at, _mm256_set1_epi8(16));
        }
        const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
        __m256i* to = reinterpret_cast<__m256i*>(out + i);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(first, second, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(first, second, 0x31));
    }
}
