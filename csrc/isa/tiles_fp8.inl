// fp8 (e4m3) becomes bf16 by two byte lookups (its 7 magnitude bits choose among 128 values), exactly, and meets the
// activation in the bf16 dot product; a group's sum is scaled once.
struct Fp8Tables {
    alignas(64) uint8_t low[128], high[128];
    Fp8Tables() {
        for (int code = 0; code < 128; code++) {
            const float value = fp8_value(static_cast<uint8_t>(code));
            uint32_t bits;
            memcpy(&bits, &value, 4);
            low[code] = static_cast<uint8_t>(bits >> 16);
            high[code] = static_cast<uint8_t>(bits >> 24);
        }
    }
};

// R rows against 16 V outputs from `column` on.
template <int R, int V, class Ahead> inline void fp8_tile(const Tile& t, int column, Ahead ahead) {
    static const Fp8Tables tables;
    const __m512i low0 = _mm512_load_si512(tables.low), low1 = _mm512_load_si512(tables.low + 64);
    const __m512i high0 = _mm512_load_si512(tables.high), high1 = _mm512_load_si512(tables.high + 64);
    const uint8_t* w = t.panel;
    __m512 total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[r][v] = _mm512_setzero_ps();
    for (int64_t first = 0; first < t.steps; first += t.group_steps) {
        const float* scales = reinterpret_cast<const float*>(w) + column;
        ahead.scales(w, scale_bytes(RP_FP8));
        w += scale_bytes(RP_FP8);
        const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
        __m512 acc[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[r][v] = _mm512_setzero_ps();
        for (int64_t s = first; s < first + n; s++, w += 256) {
            ahead.step(w);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const __m512i raw = _mm512_loadu_si512(w + 4 * column + 64 * v);
                const __m512i low = _mm512_permutex2var_epi8(low0, raw, low1);
                // high byte | sign: (raw & 0x80) | lookup
                const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, raw, high1), raw,
                                                               _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
                const __m512bh a = (__m512bh)_mm512_unpacklo_epi8(low, high), b = (__m512bh)_mm512_unpackhi_epi8(low, high);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, pair(t.x[r], 2 * s));
                    acc[r][v] = _mm512_dpbf16_ps(acc[r][v], b, pair(t.x[r], 2 * s + 1));
                }
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const __m512 scale = _mm512_loadu_ps(scales + 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) total[r][v] = _mm512_fmadd_ps(acc[r][v], scale, total[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) _mm512_storeu_ps(t.out + r * kPanel + column + 16 * v, total[r][v]);
}

template <int R> void fp8_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) fp8_rows<R - 1>(t); return; }
    for (int column = 0; column < kPanel; column += 32)
        fetching<2>(t, column, [&](auto ahead) { fp8_tile<R, 2>(t, column, ahead); });
}
