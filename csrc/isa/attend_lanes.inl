// Attention tiles in float32: over bf16 pairs widened in registers (bf16, int8 and fp8 caches), and over float32.
// Rows of a tile share the loads of keys and values; a row's own sums do not depend on how many there are.

template <int R, int S> inline void mixed_scores_tile(const AttendTile& t, int64_t first) {
    Lanes acc[R][S];
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++) acc[r][s] = zero();
    for (int64_t k = 0; k < t.key_dim / 2; k++) {
        Lanes even[S], odd[S];
        for (int s = 0; s < S; s++) load_pairs(t.keys[first + s] + 64 * k, even[s], odd[s]);
        if (t.prefetch) for (int s = 0; s < S; s++) prefetch(t.prefetch[first + s] + 64 * k);
        for (int r = 0; r < R; r++) {
            const float* q = reinterpret_cast<const float*>(t.q[r]) + 2 * k;
            const Lanes a = set1(q[0]), b = set1(q[1]);
            for (int s = 0; s < S; s++) acc[r][s] = fma(b, odd[s], fma(a, even[s], acc[r][s]));
        }
    }
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++) store(t.scores + r * t.score_stride + 16 * (first + s), acc[r][s]);
}

template <int R, int S> inline void float_scores_tile(const AttendTile& t, int64_t first) {
    Lanes acc[R][S];
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++) acc[r][s] = zero();
    for (int64_t k = 0; k < t.key_dim; k++) {
        Lanes wide[S];
        for (int s = 0; s < S; s++) wide[s] = load(reinterpret_cast<const float*>(t.keys[first + s]) + 16 * k);
        if (t.prefetch) for (int s = 0; s < S; s++) prefetch(t.prefetch[first + s] + 64 * k);
        for (int r = 0; r < R; r++) {
            const Lanes x = set1(reinterpret_cast<const float*>(t.q[r])[k]);
            for (int s = 0; s < S; s++) acc[r][s] = fma(x, wide[s], acc[r][s]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int s = 0; s < S; s++) store(t.scores + r * t.score_stride + 16 * (first + s), acc[r][s]);
}

template <int R, int C> inline void mixed_values_tile(const AttendTile& t, int64_t column) {
    Lanes acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load(t.out + r * t.v_dim + column + 16 * c);
    for (int64_t j = 0; j < t.valid; j += 2) {
        const int64_t at = (j % 16 / 2 * t.v_dim + column) * 4;
        Lanes even[C], odd[C];
        for (int c = 0; c < C; c++) load_pairs(t.values[j / 16] + at + 64 * c, even[c], odd[c]);
        if (t.prefetch) for (int c = 0; c < C; c++) prefetch(t.prefetch[j / 16] + at + 64 * c);
        const bool pair = j + 1 < t.valid;  // else the second token was never written: it may hold anything
        for (int r = 0; r < R; r++) {
            const float* p = t.scores + r * t.score_stride + j;
            const Lanes a = set1(p[0]);
            for (int c = 0; c < C; c++) acc[r][c] = fma(a, even[c], acc[r][c]);
            if (!pair) continue;
            const Lanes b = set1(p[1]);
            for (int c = 0; c < C; c++) acc[r][c] = fma(b, odd[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(t.out + r * t.v_dim + column + 16 * c, acc[r][c]);
}

template <int R, int C> inline void float_values_tile(const AttendTile& t, int64_t column) {
    Lanes acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load(t.out + r * t.v_dim + column + 16 * c);
    for (int64_t j = 0; j < t.valid; j++) {
        const int64_t at = (j % 16 * t.v_dim + column) * 4;
        Lanes wide[C];
        for (int c = 0; c < C; c++) wide[c] = load(reinterpret_cast<const float*>(t.values[j / 16] + at) + 16 * c);
        if (t.prefetch) for (int c = 0; c < C; c++) prefetch(t.prefetch[j / 16] + at + 64 * c);
        for (int r = 0; r < R; r++) {
            const Lanes p = set1(t.scores[r * t.score_stride + j]);
            for (int c = 0; c < C; c++) acc[r][c] = fma(p, wide[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(t.out + r * t.v_dim + column + 16 * c, acc[r][c]);
}

template <bool Wide, int R> void lanes_scores(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) lanes_scores<Wide, R - 1>(t); return; }
    constexpr int S = lane_vectors(R);
    int64_t s = 0;
    for (; s + S <= t.sub_blocks; s += S) Wide ? float_scores_tile<R, S>(t, s) : mixed_scores_tile<R, S>(t, s);
    for (; s < t.sub_blocks; s++) Wide ? float_scores_tile<R, 1>(t, s) : mixed_scores_tile<R, 1>(t, s);
}
template <bool Wide, int R> void lanes_values(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) lanes_values<Wide, R - 1>(t); return; }
    constexpr int C = lane_vectors(R);
    int64_t c = 0;
    for (; c + 16 * C <= t.v_dim; c += 16 * C) Wide ? float_values_tile<R, C>(t, c) : mixed_values_tile<R, C>(t, c);
    for (; c < t.v_dim; c += 16) Wide ? float_values_tile<R, 1>(t, c) : mixed_values_tile<R, 1>(t, c);
}

// Hidden keys take part with a score that weighs nothing.
constexpr float kHiddenScore = -3.0e38f;

void weigh_scores(const AttendTile& t) {
    const int64_t width = (t.valid + 15) / 16 * 16;
    for (int32_t r = 0; r < t.rows; r++) {
        float *scores = t.scores + r * t.score_stride, *sums = t.sums + 16 * r;
        const int64_t begin = t.begin[r], end = t.end[r];
        if (begin >= end) { memset(scores, 0, static_cast<size_t>(width) * 4); continue; }
        if (t.key_scales) row_multiply(scores, t.key_scales, width);
        if (t.rotary) {
            const float* rotary = t.rotary + r * t.score_stride;
            for (int64_t i = 0; i < width; i += 16) store(scores + i, fma(load(rotary + i), load(t.rotary_scales + i), load(scores + i)));
        }
        for (int64_t i = 0; i < begin; i++) scores[i] = kHiddenScore;
        for (int64_t i = end; i < width; i++) scores[i] = kHiddenScore;
        const float highest = row_max(scores, width);
        if (highest > t.max[r]) {
            const float shrink = fold_max(exp_lanes(set1((t.max[r] - highest) * t.scale)));
            row_scale(sums, shrink, 16);
            row_scale(t.out + r * t.v_dim, shrink, t.v_dim);
            t.max[r] = highest;
        }
        const Lanes max = set1(t.max[r]), scale = set1(t.scale);
        Lanes total = load(sums);
        for (int64_t i = 0; i < width; i += 16) {
            const Lanes weight = exp_lanes(mul(sub(load(scores + i), max), scale));
            total = add(total, weight);
            store(scores + i, weight);
        }
        store(sums, total);
        if (t.value_scales) row_multiply(scores, t.value_scales, t.valid);
    }
}

template <bool Wide, int R> void lanes_weigh(const AttendTile& t) {
    lanes_scores<Wide, R>(t);
    weigh_scores(t);
}

void plain_turn_pairs(const uint8_t* raw, int64_t v_dim, uint8_t* out) {
    const uint16_t* keys = reinterpret_cast<const uint16_t*>(raw);
    uint16_t* values = reinterpret_cast<uint16_t*>(out);
    const int64_t pad = (v_dim + 15) / 16 * 16;
    for (int64_t c = 0; c < v_dim; c++)
        for (int64_t t = 0; t < 16; t++) values[(t / 2 * pad + c) * 2 + t % 2] = keys[(c / 2 * 16 + t) * 2 + c % 2];
}
void plain_turn_floats(const uint8_t* raw, int64_t v_dim, uint8_t* out) {
    const float* keys = reinterpret_cast<const float*>(raw);
    float* values = reinterpret_cast<float*>(out);
    const int64_t pad = (v_dim + 15) / 16 * 16;
    for (int64_t c = 0; c < v_dim; c++)
        for (int64_t t = 0; t < 16; t++) values[t * pad + c] = keys[c * 16 + t];
}
[[maybe_unused]] void plain_expand(const uint8_t* codes, int64_t n, const CodeTable& table, const uint8_t*, uint16_t* out) {
    for (int64_t i = 0; i < n; i++) out[i] = table.values[codes[i]];
}

constexpr AttendKernels kMixedLanes{kAttendLaneRows, RP_DTYPE_F32, lanes_scores<false, kAttendLaneRows>, lanes_weigh<false, kAttendLaneRows>,
                                    lanes_values<false, kAttendLaneRows>, plain_turn_pairs};
constexpr AttendKernels kFloatLanes{kAttendLaneRows, RP_DTYPE_F32, lanes_scores<true, kAttendLaneRows>, lanes_weigh<true, kAttendLaneRows>,
                                    lanes_values<true, kAttendLaneRows>, plain_turn_floats};
