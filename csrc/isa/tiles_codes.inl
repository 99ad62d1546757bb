// Tiles of low-precision weights for ISAs that multiply in float32: codes become float32 in registers, sixteen outputs at
// a time, and meet every row of the tile; a group's sum is scaled once.

// Weights (without their scale) of sixteen outputs for input K of a step; `line` is their 64 bytes.
template <int F, int K> inline Lanes code_at(Words line) {
    if constexpr (F == RP_INT8) return sub(to_floats(bits_of(shift_right<8 * K>(line), 255)), set1(kInt8Zero));
    if constexpr (F == RP_FP8) {
        // Its bits moved to a float's place: a number 2^120 too small, denormal ones included.
        const Words top = shift_left<24 - 8 * K>(line);
        const Words sign = bits_of(top, 0x80000000u), size = bits_of(shift_right<4>(top), 0x07f00000u);
        return mul(as_floats(either(sign, size)), set1(power_of_two(120)));
    }
    if constexpr (F == RP_INT4 || F == RP_MXFP4) {
        const Words nibble = shift_right<K < 4 ? 8 * K : 8 * (K - 4) + 4>(line);
        if constexpr (F == RP_MXFP4) return e2m1(nibble);
        else return sub(to_floats(bits_of(nibble, 15)), set1(kInt4Zero));
    }
}
template <int F> inline Words load_line(const uint8_t* p) { return F == RP_FP8 ? load_split_words(p) : load_words(p); }

template <int F> inline Lanes code_scales(const uint8_t* scales, int vector) {
    if (F == RP_INT4) return load_bf16(reinterpret_cast<const uint16_t*>(scales) + 16 * vector);
    if (F == RP_MXFP4) {
        float v[16];
        for (int c = 0; c < 16; c++) v[c] = e8m0_value(scales[16 * vector + c]);
        return load(v);
    }
    return load(reinterpret_cast<const float*>(scales) + 16 * vector);
}

// acc[r][v] += x[r][K] * weights of input K; and the inputs after it.
template <int F, int K, int R, int V> inline void code_products(const Words (&line)[V], const float* const (&x)[R], Lanes (&acc)[R][V]) {
    constexpr int kInputs = F == RP_INT4 || F == RP_MXFP4 ? 8 : 4;
    Lanes wide[V];
    for (int v = 0; v < V; v++) wide[v] = code_at<F, K>(line[v]);
    for (int r = 0; r < R; r++) {
        const Lanes s = set1(x[r][K]);
        for (int v = 0; v < V; v++) acc[r][v] = fma(s, wide[v], acc[r][v]);
    }
    if constexpr (K + 1 < kInputs) code_products<F, K + 1>(line, x, acc);
}

template <int F, int R, int V, class Ahead> inline void codes_lanes_tile(const Tile& t, int column, Ahead ahead) {
    constexpr int kInputs = F == RP_INT4 || F == RP_MXFP4 ? 8 : 4;
    Lanes total[R][V];
    const float* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
        for (int v = 0; v < V; v++) total[r][v] = zero();
    }
    const uint8_t* w = t.panel;
    for (int64_t first = 0; first < t.steps; first += t.group_steps) {
        const uint8_t* scales = w;
        if (t.grouped) {
            w += scale_bytes(F);
            ahead.scales(scales, scale_bytes(F));
        }
        const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
        Lanes acc[R][V];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) acc[r][v] = zero();
        for (int64_t s = 0; s < n; s++, w += 256) {
            ahead.step(w);
            Words line[V];
            for (int v = 0; v < V; v++) line[v] = load_line<F>(w + 4 * column + 64 * v);
            code_products<F, 0>(line, x, acc);
            for (int r = 0; r < R; r++) x[r] += kInputs;
        }
        for (int v = 0; v < V; v++) {
            const Lanes scale = t.grouped ? code_scales<F>(scales, column / 16 + v) : set1(1.0f);
            for (int r = 0; r < R; r++) total[r][v] = fma(acc[r][v], scale, total[r][v]);
        }
    }
    // Of an ungrouped panel the scales come last.
    for (int v = 0; v < V; v++) {
        const Lanes scale = t.grouped ? set1(1.0f) : code_scales<F>(w, column / 16 + v);
        for (int r = 0; r < R; r++) store(t.out + r * kPanel + column + 16 * v, mul(total[r][v], scale));
    }
}

template <int F, int R> void codes_lanes_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) codes_lanes_rows<F, R - 1>(t); return; }
    constexpr int V = code_vectors(R);
    for (int column = 0; column < kPanel; column += 16 * V)
        fetching<V>(t, column, [&](auto ahead) { codes_lanes_tile<F, R, V>(t, column, ahead); });
}
