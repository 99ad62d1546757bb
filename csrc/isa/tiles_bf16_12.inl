// Tiles for bf16 in 12 bits, taken apart in registers. `add_products` is the ISA's, that of its tiles for plain bf16 and in their
// order: sums are the same bits.
//
// Few rows meet all outputs of a step; more meet one half of them after the other, so that weights are taken apart once for up to
// twelve. Instructions are kept few: beside a busy hyperthread a core issues some four a cycle, of which products want two.

// Half of step k, mended if its exceptions are next.
template <bool Mend> inline void take_half(const Halves& halves, Exceptions& exceptions, const uint8_t* step, int64_t k, int half, __m512i& a, __m512i& b) {
    const __m512i codes = _mm512_loadu_si512(step);
    halves.take(half ? _mm512_srli_epi16(codes, 4) : codes, step + 64 + 64 * half, a, b);
    if (!Mend || !exceptions.in(2 * k + half)) return;
    exceptions.each([&](int word, uint32_t exponent) {
        const uint64_t at = uint64_t{1} << word;
        const __m512i bits = _mm512_set1_epi16(static_cast<int16_t>(exponent << 7)), kept = _mm512_set1_epi16(static_cast<int16_t>(0x807f));
        a = _mm512_mask_mov_epi16(a, static_cast<__mmask32>(at), _mm512_ternarylogic_epi32(bits, kept, a, 0xf8));
        b = _mm512_mask_mov_epi16(b, static_cast<__mmask32>(at >> 32), _mm512_ternarylogic_epi32(bits, kept, b, 0xf8));
    });
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

// Up to twelve rows at one stride, addressed from five registers.
struct EvenRows {
    const uint8_t *first, *seventh;
    int64_t stride, three, five;
    explicit EvenRows(const Tile& t)
        : first(t.x[0]), seventh(t.x[0] + 6 * (t.x[1] - t.x[0])), stride(t.x[1] - t.x[0]), three(3 * stride), five(5 * stride) {}
    void advance() {
        first += 4;
        seventh += 4;
    }
    const uint8_t* at(int r) const {
        const uint8_t* p = r < 6 ? first : seventh;
        switch (r % 6) {
            case 0: return p;
            case 1: return p + stride;
            case 2: return p + 2 * stride;
            case 3: return p + three;
            case 4: return p + 4 * stride;
            default: return p + five;
        }
    }
};

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

// Up to `Whole` rows meet all outputs at once; the first of two passes over halves fetches for both.
template <int R, int Whole> void bf16_12_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) bf16_12_rows<R - 1, Whole>(t); return; }
    if constexpr (R <= Whole) {
        fetching<3>(t, 0, [&](auto ahead) { bf16_12_tile<R>(t, ahead); });
    } else {
        if (t.follows) bf16_12_half_tile<R, 0>(t, Follow<3>(t, 0));
        else bf16_12_half_tile<R, 0>(t, Lead<2>(t, 0));
        bf16_12_half_tile<R, 1>(t, Lead<2>(t, 32));
    }
}
