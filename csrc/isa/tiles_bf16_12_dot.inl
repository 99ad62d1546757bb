// Tiles for bf16 in 12 bits where there is a bf16 product. Instructions are kept few: beside a busy hyperthread a core issues some
// four a cycle, of which products want two.
inline void add_products(__m512* acc, __m512i a, __m512i b, const uint8_t* row, int64_t k) {
    const __m512bh s = pair(row, k);
    acc[0] = _mm512_dpbf16_ps(acc[0], (__m512bh)a, s);
    acc[1] = _mm512_dpbf16_ps(acc[1], (__m512bh)b, s);
}

template <int R, class Ahead> inline void bf16_12_tile(const Tile& t, Ahead ahead) {
    const Halves halves(t.panel);
    Exceptions exceptions(t.panel, t.steps);
    __builtin_prefetch(bf16_12_exceptions(t.panel_next, t.steps));  // what is read first of it lies at its end
    __m512 acc[R][4];
    const uint8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        x[r] = t.x[r];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r][v] = _mm512_setzero_ps();
    }
    const uint8_t* w = t.panel + bf16_12_front_bytes;
    const auto step = [&](int64_t k, auto mend) __attribute__((always_inline)) {
        ahead.step(w);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m512i a, b;
            take_half<decltype(mend)::value>(halves, exceptions, w, k, half, a, b);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                asm("" : "+r"(x[r]));  // read again for the second half: registers are few
                add_products(acc[r] + 2 * half, a, b, x[r], k);
            }
        }
        w += bf16_12_step_bytes;
    };
    for (int64_t k = 0; k < t.steps; k++) {
        for (const int64_t end = exceptions.next_step(t.steps); k < end; k++) step(k, std::false_type{});
        if (k < t.steps) step(k, std::true_type{});
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_storeu_ps(t.out + r * kPanel + 16 * v, acc[r][v]);
}

// R rows against one half of the outputs.
template <int R, int Half, class Ahead> inline void bf16_12_half_tile(const Tile& t, Ahead ahead) {
    const Halves halves(t.panel);
    Exceptions exceptions(t.panel, t.steps);
    __m512 acc[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    EvenRows x(t);
    const uint8_t* w = t.panel + bf16_12_front_bytes;
    const auto step = [&](int64_t k, auto mend) __attribute__((always_inline)) {
        ahead.step(w);
        __m512i a, b;
        if (decltype(mend)::value && Half && exceptions.in(2 * k)) exceptions.skip();
        take_half<decltype(mend)::value>(halves, exceptions, w, k, Half, a, b);
        if (decltype(mend)::value && !Half && exceptions.in(2 * k + 1)) exceptions.skip();
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) add_products(acc[r], a, b, x.at(r), 0);
        w += bf16_12_step_bytes;
        x.advance();
    };
    for (int64_t k = 0; k < t.steps; k++) {
        for (const int64_t end = exceptions.next_step(t.steps); k < end; k++) step(k, std::false_type{});
        if (k < t.steps) step(k, std::true_type{});
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(t.out + r * kPanel + 32 * Half + 16 * v, acc[r][v]);
}
