// Tiles for integer codes on processors without 8-bit dot products: a pair of codes meets a pair of 16-bit activations in
// one multiply-add of 16-bit halves (pmaddwd), twice the products of a float32 one.
//
// Activations are fixed point with one scale per group of inputs, 16 bits or (a8) 8: the same numbers as those of
// tiles_vnni.inl. Integer sums are exact; a code's zero point is taken off by starting a group's sums at -zero * sum(q). A
// group's sum is at most 32512 * 255 * 128 < 2^31 in magnitude on the way, whatever the order.

struct Int16Header {
    float scale;    // NaN when the group holds one, so that it shows in every output
    uint32_t start;
};
constexpr int64_t int16_group_bytes(int64_t inputs) { return static_cast<int64_t>(sizeof(Int16Header)) + 2 * inputs; }

int64_t int16_row_bytes(const PackedWeight& w, int32_t) {
    return ceil_div(padded_inputs(w), scale_inputs(w)) * int16_group_bytes(scale_inputs(w));
}

// A step's inputs, and the order in which its pairs take them: codes two bytes apart become the halves of a word.
template <int F> struct PairOrder;
template <> struct PairOrder<RP_INT8> { static constexpr int inputs = 4, at[8] = {0, 2, 1, 3}; };
template <> struct PairOrder<RP_INT4> { static constexpr int inputs = 8, at[8] = {0, 2, 4, 6, 1, 3, 5, 7}; };
template <> struct PairOrder<RP_MXFP4> : PairOrder<RP_INT4> {};

template <int F> constexpr int zero_of() { return F == RP_INT8 ? kInt8Zero : F == RP_INT4 ? kInt4Zero : kFp4Zero; }

template <int F, int Bits> void int16_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    using Order = PairOrder<F>;
    const int64_t group = scale_inputs(w);
    uint8_t* at = static_cast<uint8_t*>(row);
    each_group(w, x, dtype, [&](int64_t, const float* values) {
        const GroupScale scale = group_scale(values, group, Bits == 8 ? kLargestA8 : kLargestA16);
        int16_t* codes = reinterpret_cast<int16_t*>(at + sizeof(Int16Header));
        uint32_t sum = 0;
        for (int64_t i = 0; i < group; i += 16) {
            alignas(64) int32_t q[16];
            const Words rounded = round_words(mul(load(values + i), set1(scale.inverse)));
            memcpy(q, &rounded, 64);
            for (int j = 0; j < 16; j++) {
                sum += static_cast<uint32_t>(q[j]);
                codes[i + j] = static_cast<int16_t>(q[j / Order::inputs * Order::inputs + Order::at[j % Order::inputs]]);
            }
        }
        const Int16Header header{scale.scale, 0u - zero_of<F>() * sum};
        memcpy(at, &header, sizeof header);
        at += int16_group_bytes(group);
    });
}

// Pair P of a step as halves of words, one word an output.
template <int F, int P> inline Words pair_of(Words line) {
    if constexpr (F == RP_INT8) return bits_of(shift_right<8 * P>(line), 0x00ff00ffu);
    const Words nibbles = bits_of(shift_right<4 * P>(line), 0x000f000fu);
    if constexpr (F == RP_MXFP4) return fp4_codes(nibbles);
    else return nibbles;
}

template <int F> inline Lanes pair_scales(const uint8_t* scales, int vector) {
    if constexpr (F == RP_INT8) return load(reinterpret_cast<const float*>(scales) + 16 * vector);
    if constexpr (F == RP_INT4) return load_bf16(reinterpret_cast<const uint16_t*>(scales) + 16 * vector);
    // Half the power of two, because the codes are doubled; 2^-127 counts as zero.
    return mul(as_floats(shift_left<23>(load_bytes(scales + 16 * vector))), set1(0.5f));
}

// acc[r][v] += the products of pair P of the step; and of the pairs after it.
template <int F, int P, int R, int V>
inline void pair_products(const Words (&line)[V], const uint8_t* const (&x)[R], Words (&acc)[R][V]) {
    Words code[V];
    for (int v = 0; v < V; v++) code[v] = pair_of<F, P>(line[v]);
    for (int r = 0; r < R; r++) {
        const Words q = repeat_word(x[r] + 4 * P);
        for (int v = 0; v < V; v++) dot_pairs(acc[r][v], code[v], q);
    }
    if constexpr (P + 1 < PairOrder<F>::inputs / 2) pair_products<F, P + 1>(line, x, acc);
}

// R rows against 16 V outputs from `column` on.
template <int F, int R, int V, bool Grouped, class Ahead> inline void int16_tile(const Tile& t, int column, Ahead ahead) {
    Lanes total[R][V];
    const uint8_t* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = t.x[r];
        for (int v = 0; v < V; v++) total[r][v] = zero();
    }
    const uint8_t* w = t.panel;
    const int64_t group_bytes = 2 * PairOrder<F>::inputs * t.group_steps;
    for (int64_t first = 0; first < t.steps; first += t.group_steps) {
        const uint8_t* scales = w;
        if (Grouped) {
            w += scale_bytes(F);
            ahead.scales(scales, scale_bytes(F));
        }
        const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
        float activation[R];
        Words acc[R][V];
        for (int r = 0; r < R; r++) {
            memcpy(&activation[r], x[r], 4);
            for (int v = 0; v < V; v++) acc[r][v] = repeat_word(x[r] + offsetof(Int16Header, start));
            x[r] += sizeof(Int16Header);
        }
        for (int64_t s = 0; s < n; s++, w += 256) {
            ahead.step(w);
            Words line[V];
            for (int v = 0; v < V; v++) line[v] = load_words(w + 4 * column + 64 * v);
            pair_products<F, 0>(line, x, acc);
            for (int r = 0; r < R; r++) x[r] += 2 * PairOrder<F>::inputs;
        }
        for (int r = 0; r < R; r++) x[r] += group_bytes - 2 * PairOrder<F>::inputs * n;
        for (int v = 0; v < V; v++) {
            const Lanes scale = Grouped ? pair_scales<F>(scales, column / 16 + v) : set1(1.0f);
            for (int r = 0; r < R; r++) {
                const Lanes factor = Grouped ? mul(scale, set1(activation[r])) : set1(activation[r]);
                total[r][v] = fma(to_floats(acc[r][v]), factor, total[r][v]);
            }
        }
    }
    for (int v = 0; v < V; v++)
        for (int r = 0; r < R; r++) {
            if (!Grouped) total[r][v] = mul(total[r][v], pair_scales<F>(w, column / 16 + v));
            store(t.out + r * kPanel + column + 16 * v, total[r][v]);
        }
}

template <int F, int R> void int16_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) int16_rows<F, R - 1>(t); return; }
    constexpr int V = int16_vectors(R);
    for (int column = 0; column < kPanel; column += 16 * V)
        fetching<V>(t, column, [&](auto ahead) {
            if (F != RP_INT8 || t.grouped) int16_tile<F, R, V, true>(t, column, ahead);
            else int16_tile<F, R, V, false>(t, column, ahead);
        });
}

// Products of pairs in registers, with the sums of the tallest tile; each product waits for its sum, or one would do for all.
double pairs_peak(int32_t format, int64_t iterations) {
    if (format != RP_INT8 && format != RP_INT4 && format != RP_MXFP4) return lanes_peak(format, iterations);
    constexpr int kSums = kInt16Rows * int16_vectors(kInt16Rows);
    alignas(64) const uint8_t bytes[4] = {1, 0, 0, 0};
    const Words one = repeat_word(bytes);
    Words acc[kSums];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; i++) acc[i] = one;
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 32
        for (int j = 0; j < kSums; j++) dot_pairs(acc[j], acc[j], one);
    }
    Lanes sum = zero();
#pragma GCC unroll 32
    for (int i = 0; i < kSums; i++) sum = add(sum, to_floats(acc[i]));
    return fold_sum(sum) == 0.5f ? -1.0 : static_cast<double>(iterations) * kSums * 64;
}
