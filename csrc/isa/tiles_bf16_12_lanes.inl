// Tiles for bf16 in 12 bits where it is multiplied in float32. Weights are taken apart while those before them are multiplied: behind
// all of these products they would leave the multipliers waiting, since a core looks no further ahead than half a step.

// In assembly, because GCC otherwise moves sums from register to register.
inline __m512 fma_in_place(__m512 x, __m512 y, __m512 sum) {
    asm("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}

// Products of two lines of bf16, that is of float32, the even input first. `meanwhile`, which may overwrite the lines, comes between.
template <int R, int V, class At, class Meanwhile>
__attribute__((always_inline)) inline void add_products(__m512 (&acc)[R][V], int v, __m512i a, __m512i b, At&& at, Meanwhile&& meanwhile) {
    const auto add = [&](__m512 a, __m512 b, int input) __attribute__((always_inline)) {
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const __m512 s = set1(at(r)[input]);
            acc[r][v] = fma_in_place(s, a, acc[r][v]);
            acc[r][v + 1] = fma_in_place(s, b, acc[r][v + 1]);
        }
    };
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    add(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), 0);
    const __m512 odd_a = _mm512_castsi512_ps(_mm512_and_si512(a, high)), odd_b = _mm512_castsi512_ps(_mm512_and_si512(b, high));
    meanwhile();
    add(odd_a, odd_b, 1);
}

template <int R, class Ahead> inline void bf16_12_tile(const Tile& t, Ahead ahead) {
    const Halves halves(t.panel);
    Exceptions exceptions(t.panel, t.steps);
    __builtin_prefetch(bf16_12_exceptions(t.panel_next, t.steps));  // what is read first of it lies at its end
    __m512 acc[R][4];
    const float* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r][v] = _mm512_setzero_ps();
    }
    const uint8_t* w = t.panel + bf16_12_front_bytes;
    __m512i a, b;
    const auto take = [&](int64_t k, int half, auto mend) __attribute__((always_inline)) {
        take_half<decltype(mend)::value>(halves, exceptions, w, k, half, a, b);
    };
    // Step k, whose first half is taken.
    const auto step = [&](int64_t k, auto mend, bool last) __attribute__((always_inline)) {
        ahead.step(w);
        const auto at = [&](int r) __attribute__((always_inline)) { return x[r] + 2 * k; };
        add_products(acc, 0, a, b, at, [&]() __attribute__((always_inline)) { take(k, 1, mend); });
        w += bf16_12_step_bytes;
        add_products(acc, 2, a, b, at, [&]() __attribute__((always_inline)) { if (!last) take(k + 1, 0, mend); });
    };
    take(0, 0, std::true_type{});
    int64_t k = 0;
    while (k < t.steps - 1) {
        for (const int64_t end = exceptions.next_step(t.steps); k < end - 1; k++) step(k, std::false_type{}, false);
        if (k < t.steps - 1) step(k++, std::true_type{}, false);
    }
    step(k, std::true_type{}, true);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_storeu_ps(t.out + r * kPanel + 16 * v, acc[r][v]);
}

template <int R, int Half, class Ahead> inline void bf16_12_half_tile(const Tile& t, Ahead ahead) {
    const Halves halves(t.panel);
    Exceptions exceptions(t.panel, t.steps);
    __m512 acc[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    EvenRows x(t);
    const uint8_t* w = t.panel + bf16_12_front_bytes;
    __m512i a, b;
    const auto take = [&](int64_t k, auto mend) __attribute__((always_inline)) {
        if (decltype(mend)::value && Half && exceptions.in(2 * k)) exceptions.skip();
        take_half<decltype(mend)::value>(halves, exceptions, w, k, Half, a, b);
        if (decltype(mend)::value && !Half && exceptions.in(2 * k + 1)) exceptions.skip();
        w += bf16_12_step_bytes;
    };
    // The step before k, which is taken meanwhile.
    const auto step = [&](int64_t k, auto mend, bool last) __attribute__((always_inline)) {
        ahead.step(w);
        const auto at = [&](int r) __attribute__((always_inline)) { return reinterpret_cast<const float*>(x.at(r)); };
        add_products(acc, 0, a, b, at, [&]() __attribute__((always_inline)) { if (!last) take(k, mend); });
        x.advance();
    };
    take(0, std::true_type{});
    int64_t k = 1;
    while (k < t.steps) {
        for (const int64_t end = exceptions.next_step(t.steps); k < end; k++) step(k, std::false_type{}, false);
        if (k < t.steps) step(k++, std::true_type{}, false);
    }
    step(k, std::false_type{}, true);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(t.out + r * kPanel + 32 * Half + 16 * v, acc[r][v]);
}
