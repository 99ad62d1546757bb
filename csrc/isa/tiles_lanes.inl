// Tiles for ISAs that multiply in float32: weights widened in registers, rows prepared as float32.
// kLaneRows and kLaneVectors (16 outputs each) are chosen by the including unit so that the tile fits its registers.

int64_t f32_row_bytes(const PackedWeight& w, int32_t dtype) {
    return dtype == RP_DTYPE_F32 && w.inputs == padded_inputs(w) ? 0 : padded_inputs(w) * 4;
}
inline void f32_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    float* y = static_cast<float*>(row);
    row_widen(x, dtype, w.inputs, y);
    for (int64_t i = w.inputs; i < padded_inputs(w); i++) y[i] = 0.0f;
}

template <int R, int V> inline void bf16_lanes_tile(const Tile& t, int64_t column, bool ask) {
    Lanes acc[R][V];
    const float* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
        for (int v = 0; v < V; v++) acc[r][v] = zero();
    }
    const uint8_t* w = t.panel + column * 4;
    const uint8_t* ahead = t.prefetch;
    for (int64_t k = 0; k < t.steps; k++, w += 256) {
        if (ask) for (int64_t i = 0; i < t.prefetch_lines; i++, ahead += 64) prefetch(ahead);
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

template <int R, int V> inline void f32_lanes_tile(const Tile& t, int64_t column, bool ask) {
    Lanes acc[R][V];
    const float* x[R];
    for (int r = 0; r < R; r++) {
        x[r] = reinterpret_cast<const float*>(t.x[r]);
        for (int v = 0; v < V; v++) acc[r][v] = zero();
    }
    const float* w = reinterpret_cast<const float*>(t.panel) + column;
    const uint8_t* ahead = t.prefetch;
    for (int64_t k = 0; k < t.steps; k++, w += kPanel) {
        if (ask) for (int64_t i = 0; i < t.prefetch_lines; i++, ahead += 64) prefetch(ahead);
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
    for (int c = 0; c < kPanel; c += 16 * kLaneVectors) bf16_lanes_tile<R, kLaneVectors>(t, c, c == 0);
}
template <int R> void f32_lanes_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) f32_lanes_rows<R - 1>(t); return; }
    for (int c = 0; c < kPanel; c += 16 * kLaneVectors) f32_lanes_tile<R, kLaneVectors>(t, c, c == 0);
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

// Low-precision formats, widened to float32 one output vector at a time: correct everywhere, fast nowhere.
template <int F> inline Lanes wide_codes(const uint8_t* line, int k) {
    alignas(64) float v[16];
    for (int c = 0; c < 16; c++) {
        if (F == RP_INT8) v[c] = static_cast<float>(line[int8_byte(c, k)] - kInt8Zero);
        if (F == RP_INT4) v[c] = static_cast<float>((line[int4_byte(c, k)] >> (k < 4 ? 0 : 4) & 15) - kInt4Zero);
        if (F == RP_MXFP4) v[c] = static_cast<float>(kFp4Twice[line[int4_byte(c, k)] >> (k < 4 ? 0 : 4) & 15]);
        if (F == RP_FP8) v[c] = fp8_value(line[fp8_byte(c, k)]);
    }
    return load(v);
}
template <int F> inline Lanes wide_scales(const uint8_t* scales, int vector) {
    if (F == RP_INT4) return load_bf16(reinterpret_cast<const uint16_t*>(scales) + 16 * vector);
    if (F == RP_MXFP4) {
        float v[16];
        for (int c = 0; c < 16; c++) v[c] = 0.5f * e8m0_value(scales[16 * vector + c]);
        return load(v);
    }
    return load(reinterpret_cast<const float*>(scales) + 16 * vector);
}

template <int F, int R> void codes_lanes_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) codes_lanes_rows<F, R - 1>(t); return; }
    constexpr int kInputs = F == RP_INT4 || F == RP_MXFP4 ? 8 : 4;
    const uint8_t* end = t.panel + t.steps * 256;  // of an ungrouped panel: its scales
    for (int v = 0; v < 4; v++) {
        Lanes total[R];
        for (int r = 0; r < R; r++) total[r] = zero();
        const uint8_t* w = t.panel;
        for (int64_t first = 0; first < t.steps; first += t.group_steps) {
            const uint8_t* scales = w;
            if (t.grouped) w += scale_bytes(F);
            const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
            Lanes acc[R];
            for (int r = 0; r < R; r++) acc[r] = zero();
            for (int64_t s = 0; s < n; s++, w += 256) {
                for (int k = 0; k < kInputs; k++) {
                    const Lanes wide = wide_codes<F>(w + 64 * v, k);
                    for (int r = 0; r < R; r++)
                        acc[r] = fma(set1(reinterpret_cast<const float*>(t.x[r])[(first + s) * kInputs + k]), wide, acc[r]);
                }
            }
            for (int r = 0; r < R; r++)
                total[r] = t.grouped ? fma(acc[r], wide_scales<F>(scales, v), total[r]) : add(total[r], acc[r]);
        }
        for (int r = 0; r < R; r++)
            store(t.out + r * kPanel + 16 * v, t.grouped ? total[r] : mul(total[r], wide_scales<F>(end, v)));
    }
}
