// Tiles for bf16 in 12 bits, taken apart in registers. `add_products` is the ISA's, that of its tiles for plain bf16 and in their
// order: sums are the same bits.

template <int R, class Ahead> inline void bf16_12_tile(const Tile& t, Ahead ahead) {
    const Halves halves(t.panel);
    Exceptions exceptions(t.panel, t.steps);
    __m512 acc[R][4];
    const uint8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        x[r] = t.x[r];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r][v] = _mm512_setzero_ps();
    }
    const uint8_t* w = t.panel + bf16_12_front_bytes;
    for (int64_t k = 0; k < t.steps; k++, w += bf16_12_step_bytes) {
        ahead.step(w);
        __m512i codes = _mm512_loadu_si512(w);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m512i a, b;
            halves.take(codes, w + 64 + 64 * half, a, b);
            if (__builtin_expect(exceptions.in(2 * k + half), 0)) {  // by way of memory: they are few
                alignas(64) uint16_t words[64];
                _mm512_store_si512(words, a);
                _mm512_store_si512(words + 32, b);
                exceptions.mend(words);
                a = _mm512_load_si512(words);
                b = _mm512_load_si512(words + 32);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                asm("" : "+r"(x[r]));  // read again for the second half: registers are few
                add_products(acc[r] + 2 * half, a, b, x[r], k);
            }
            codes = _mm512_srli_epi16(codes, 4);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_storeu_ps(t.out + r * kPanel + 16 * v, acc[r][v]);
}

template <int R> void bf16_12_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) bf16_12_rows<R - 1>(t); return; }
    fetching<3>(t, 0, [&](auto ahead) { bf16_12_tile<R>(t, ahead); });
}
