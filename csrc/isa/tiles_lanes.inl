// Tiles for ISAs that multiply in float32: weights widened in registers, rows prepared as float32.
// kLaneRows and lane_vectors(rows) (16 outputs each) are chosen by the including unit so that the tile fits its registers.

int64_t f32_row_bytes(const PackedWeight& w, int32_t dtype) {
    return dtype == RP_DTYPE_F32 && w.inputs == padded_inputs(w) ? 0 : padded_inputs(w) * 4;
}
inline void f32_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    float* y = static_cast<float*>(row);
    row_widen(x, dtype, w.inputs, y);
    for (int64_t i = w.inputs; i < padded_inputs(w); i++) y[i] = 0.0f;
}

template <int R, int V, class Ahead> inline void bf16_lanes_tile(const Tile& t, int column, Ahead ahead) {
    Lanes acc[R][V];
    const float* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
        for (int v = 0; v < V; v++) acc[r][v] = zero();
    }
    const uint8_t* w = t.panel + column * 4;
    for (int64_t k = 0; k < t.steps; k++, w += 256) {
        ahead.step(t.panel + 256 * k);
        Lanes even[V], odd[V];
        for (int v = 0; v < V; v++) load_pairs(w + 64 * v, even[v], odd[v]);
        for (int r = 0; r < R; r++) {
            const Lanes first = set1(x[r][2 * k]);
            for (int v = 0; v < V; v++) acc[r][v] = fma(first, even[v], acc[r][v]);
        }
        for (int r = 0; r < R; r++) {
            const Lanes second = set1(x[r][2 * k + 1]);
            for (int v = 0; v < V; v++) acc[r][v] = fma(second, odd[v], acc[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(t.out + r * kPanel + column + 16 * v, acc[r][v]);
}

template <int R, int V, class Ahead> inline void f32_lanes_tile(const Tile& t, int column, Ahead ahead) {
    Lanes acc[R][V];
    const float* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
        for (int v = 0; v < V; v++) acc[r][v] = zero();
    }
    const float* w = reinterpret_cast<const float*>(t.panel) + column;
    for (int64_t k = 0; k < t.steps; k++, w += kPanel) {
        ahead.step(t.panel + 256 * k);
        Lanes wide[V];
        for (int v = 0; v < V; v++) wide[v] = load(w + 16 * v);
        for (int r = 0; r < R; r++) {
            const Lanes s = set1(x[r][k]);
            for (int v = 0; v < V; v++) acc[r][v] = fma(s, wide[v], acc[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(t.out + r * kPanel + column + 16 * v, acc[r][v]);
}

template <int R> void bf16_lanes_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) bf16_lanes_rows<R - 1>(t); return; }
    constexpr int V = lane_vectors(R);
    for (int column = 0; column < kPanel; column += 16 * V)
        fetching<V>(t, column, [&](auto ahead) { bf16_lanes_tile<R, V>(t, column, ahead); });
}
template <int R, int V> inline void f32_lanes_columns(const Tile& t) {
    for (int column = t.first_column; column < t.first_column + t.columns; column += 16 * V)
        fetching<V>(t, column, [&](auto ahead) { f32_lanes_tile<R, V>(t, column, ahead); });
}
template <int R> void f32_lanes_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) f32_lanes_rows<R - 1>(t); return; }
    constexpr int V = lane_vectors(R);
    if (t.columns == kPanel) f32_lanes_columns<R, V>(t);
    else f32_lanes_columns<R, (V < 2 ? 1 : 2)>(t);
}

double lanes_peak(int32_t, int64_t iterations) {
    Lanes acc[12];
    for (int i = 0; i < 12; i++) acc[i] = set1(static_cast<float>(i));
    Lanes a = set1(0.999f), b = set1(1e-3f);
    for (int64_t i = 0; i < iterations; i++)
        for (int j = 0; j < 12; j++) acc[j] = fma(acc[j], a, b);
    for (int i = 1; i < 12; i++) acc[0] = add(acc[0], acc[i]);
    return fold_sum(acc[0]) > 1e30f ? -1.0 : static_cast<double>(iterations) * 12 * 32;
}
