// Attention tiles by the bf16 dot product, and the two permutations that bring other caches to it: codes looked up as
// bf16, and a sub-block of keys turned into one of values.

constexpr int kAttendDotRows = 6;

// finish(first, products): products[r][s] of row r and the 16 keys of sub-block first + s, still in registers.
template <int R, int S, bool Ask, class Finish> inline void dot_products_tile(const AttendTile& t, int64_t first, Finish&& finish) {
    __m512 acc[R][S];
    const uint8_t* q[R];
    const uint8_t *k[S], *ahead[S];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        q[r] = t.q[r];
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) acc[r][s] = _mm512_setzero_ps();
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; s++) {
        k[s] = t.keys[first + s];
        if (Ask) ahead[s] = t.prefetch[first + s];
    }
    for (int64_t i = 0; i < t.key_dim / 2; i++) {
        __m512bh w[S];
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) {
            w[s] = pairs(k[s] + 64 * i);
            if (Ask) prefetch(ahead[s] + 64 * i);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh x = pair(q[r], i);
#pragma GCC unroll 4
            for (int s = 0; s < S; s++) acc[r][s] = _mm512_dpbf16_ps(acc[r][s], w[s], x);
        }
    }
    finish(first, acc);
}
template <int R, bool Ask, class Finish> inline void dot_products_rows(const AttendTile& t, Finish&& finish) {
    int64_t s = 0;
    for (; s + 4 <= t.sub_blocks; s += 4) dot_products_tile<R, 4, Ask>(t, s, finish);
    const int64_t left = t.sub_blocks - s;
    if (left == 3) dot_products_tile<R, 3, Ask>(t, s, finish);
    if (left == 2) dot_products_tile<R, 2, Ask>(t, s, finish);
    if (left == 1) dot_products_tile<R, 1, Ask>(t, s, finish);
}

template <int R, int S> inline void store_scores(const AttendTile& t, int64_t first, const __m512 (&products)[R][S]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) store(t.scores + r * t.score_stride + 16 * (first + s), products[r][s]);
}
template <int R> void dot_scores(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) dot_scores<R - 1>(t); return; }
    dot_products_rows<R, false>(t, [&](int64_t first, const auto& products) { store_scores(t, first, products); });
}

// ---------------------------------------------------------------- weights
//
// A weight is 2^(unit (score - max)) as bf16. bf16 and float32 have one range of exponents, so a row's `max` need not be its
// largest score, only near it: the first sub-block that it sees gives it, and only a row whose sums outgrow kMostSum gets a new
// one. Either depends on the row's own keys and on where spans begin, not on its company.

constexpr float kMostSum = 0x1p60f;  // leaves 2^67 for the values that are weighed so

inline float unit_of(const AttendTile& t) { return t.scale * 1.44269504088896341f; }

// 2^x to 8e-5, a twentieth of what rounding to bf16 costs; 0 far below, and for -inf.
inline __m512 rough_exp2(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 p = _mm512_fmadd_ps(set1(0.0780245215f), r, set1(0.226067156f));
    p = _mm512_fmadd_ps(p, r, set1(0.695833564f));
    p = _mm512_fmadd_ps(p, r, set1(0.999925196f));
    return _mm512_scalef_ps(p, x);  // floors x
}
inline __m512 dot_weight(__m512 score, float unit, float max) { return rough_exp2(fma(score, set1(unit), set1(-max * unit))); }

// Of 64 keys from `first` on, those that row r sees.
inline uint64_t seen_by(const AttendTile& t, int64_t r, int64_t first) {
    const auto below = [&](int64_t bound) {  // the first bound - first of them
        return bound <= first ? 0 : bound >= first + 64 ? ~uint64_t{0} : (uint64_t{1} << (bound - first)) - 1;
    };
    return below(t.end[r]) & ~below(t.begin[r]);
}
inline __mmask16 of_sub(uint64_t seen, int s) { return static_cast<__mmask16>(seen >> (16 * s)); }

// Row r's scores of the 16 keys from i on, from the products in t.scores; codes get their scales.
inline __m512 score_at(const AttendTile& t, int64_t r, int64_t i) {
    const __m512 product = load(t.scores + r * t.score_stride + i);
    if (!t.key_scales) return product;
    const __m512 score = mul(product, load(t.key_scales + i));
    return t.rotary ? fma(load(t.rotary + r * t.score_stride + i), load(t.rotary_scales + i), score) : score;
}

inline uint16_t* weights_of(const AttendTile& t, int64_t r) { return reinterpret_cast<uint16_t*>(t.weights + r * t.score_stride / 2); }

// Weights of sub-blocks [first, first + S), from the products in t.scores, for rows that see all, some or none of their keys.
// A code's value scale counts in the product and not in the sum.
template <int S> void weigh_any(const AttendTile& t, int64_t first) {
    const float unit = unit_of(t);
    for (int64_t r = 0; r < t.rows; r++) {
        const uint64_t seen = seen_by(t, r, 16 * first);
        __m512 scores[S], total = load(t.sums + 16 * r);
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) scores[s] = score_at(t, r, 16 * (first + s));
        for (int s = 0; s < S && t.max[r] == kHiddenScore; s++)
            if (of_sub(seen, s)) t.max[r] = _mm512_mask_reduce_max_ps(of_sub(seen, s), scores[s]);
        const float max = t.max[r];
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) {
            const int64_t i = 16 * (first + s);
            __m512 weight = _mm512_maskz_mov_ps(of_sub(seen, s), dot_weight(scores[s], unit, max));
            total = add(total, weight);
            if (t.value_scales) weight = _mm512_maskz_mul_ps(of_sub(seen, s), weight, load(t.value_scales + i));
            _mm256_store_si256(reinterpret_cast<__m256i*>(weights_of(t, r) + i), (__m256i)_mm512_cvtneps_pbh(weight));
        }
        store(t.sums + 16 * r, total);
    }
}

// The same for four sub-blocks that every row sees whole, straight from the registers.
template <int R> inline void weigh_seen(const AttendTile& t, int64_t first, const __m512 (&products)[R][4]) {
    const float unit = unit_of(t);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        if (t.max[r] == kHiddenScore) t.max[r] = fold_max(products[r][0]);
        uint16_t* weights = weights_of(t, r) + 16 * first;
        const float max = t.max[r];
        __m512 total = load(t.sums + 16 * r);
#pragma GCC unroll 2
        for (int s = 0; s < 4; s += 2) {
            const __m512 a = dot_weight(products[r][s], unit, max), b = dot_weight(products[r][s + 1], unit, max);
            total = add(add(total, a), b);
            _mm512_storeu_si512(weights + 16 * s, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
        store(t.sums + 16 * r, total);
    }
}

// Keys that every row sees as they are: [first, last).
struct Inner { int64_t first, last; };
inline Inner inner_of(const AttendTile& t) {
    Inner inner{0, t.key_scales ? 0 : t.valid};
    for (int64_t r = 0; r < t.rows; r++) {
        inner.first = t.begin[r] > inner.first ? t.begin[r] : inner.first;
        inner.last = t.end[r] < inner.last ? t.end[r] : inner.last;
    }
    return inner;
}

template <int R> void weigh_products(const AttendTile& t) {
    const Inner inner = inner_of(t);
    const auto weigh = [&](int64_t first, const auto& products) __attribute__((always_inline)) {  // else products go through memory
        constexpr int kSubs = sizeof products[0] / sizeof(__m512);
        if constexpr (kSubs == 4) {
            if (inner.first <= 16 * first && 16 * (first + 4) <= inner.last) { weigh_seen<R>(t, first, products); return; }
        }
        store_scores(t, first, products);
        weigh_any<kSubs>(t, first);
    };
    if (t.prefetch) dot_products_rows<R, true>(t, weigh);
    else dot_products_rows<R, false>(t, weigh);
}

// Gives rows whose sums are too large their largest score as `max`, and brings what they have summed before to it.
template <int R> void raise_max(const AttendTile& t, const __m512* before) {
    const __m512 unit = set1(unit_of(t));
    dot_scores<R>(t);
    for (int r = 0; r < R; r++) {
        const bool outgrown = _mm512_cmp_ps_mask(load(t.sums + 16 * r), set1(kMostSum), _CMP_GT_OQ);
        store(t.sums + 16 * r, before[r]);
        if (!outgrown) continue;
        __m512 highest = set1(t.max[r]);
        for (int64_t i = 0; i < t.valid; i += 16)
            highest = _mm512_mask_max_ps(highest, of_sub(seen_by(t, r, i), 0), score_at(t, r, i), highest);
        const float max = fold_max(highest);
        const __m512 shrink = rough_exp2(mul(set1(t.max[r] - max), unit));
        store(t.sums + 16 * r, mul(before[r], shrink));
        for (int64_t c = 0; c < t.v_dim; c += 16) store(t.out + r * t.v_dim + c, mul(load(t.out + r * t.v_dim + c), shrink));
        t.max[r] = max;
    }
}

template <int R> void dot_weigh(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) dot_weigh<R - 1>(t); return; }
    __m512 before[R], largest = zero();
    for (int r = 0; r < R; r++) before[r] = load(t.sums + 16 * r);
    weigh_products<R>(t);
    for (int r = 0; r < R; r++) largest = _mm512_max_ps(load(t.sums + 16 * r), largest);
    if (!_mm512_cmp_ps_mask(largest, set1(kMostSum), _CMP_GT_OQ)) return;
    raise_max<R>(t, before);
    weigh_products<R>(t);
}

template <int R, int C, bool Ask>
inline void dot_values_tile(const AttendTile& t, int64_t column) {
    __m512 acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_loadu_ps(t.out + r * t.v_dim + column + 16 * c);
    const int64_t whole = t.valid / 2, stride = t.score_stride / 2;
    const auto step = [&](int64_t j, __m512i keep) __attribute__((always_inline)) {
        const int64_t at = (j % 8 * t.v_dim + column) * 4;
        __m512bh v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            v[c] = (__m512bh)_mm512_and_si512((__m512i)pairs(t.values[j / 8] + at + 64 * c), keep);
            if (Ask) prefetch(t.prefetch[j / 8] + at + 64 * c);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(t.weights[r * stride + j]));
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], v[c], x);
        }
    };
    for (int64_t j = 0; j < whole; j++) step(j, _mm512_set1_epi32(-1));
    // The last pair's second token was never written: it may hold anything.
    if (t.valid % 2) step(whole, _mm512_set1_epi32(0xffff));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) _mm512_storeu_ps(t.out + r * t.v_dim + column + 16 * c, acc[r][c]);
}
template <int R, bool Ask> void dot_values_rows(const AttendTile& t) {
    int64_t c = 0;
    for (; c + 64 <= t.v_dim; c += 64) dot_values_tile<R, 4, Ask>(t, c);
    for (; c < t.v_dim; c += 16) dot_values_tile<R, 1, Ask>(t, c);
}
template <int R> void dot_values(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) dot_values<R - 1>(t); return; }
    if (t.prefetch) dot_values_rows<R, true>(t);
    else dot_values_rows<R, false>(t);
}

// Sixteen channels of sixteen tokens at a time: words are paired by token inside each 64 bits, then the 8 x 8 matrix of
// 64-bit pieces is transposed.
void permute_turn(const uint8_t* keys, int64_t v_dim, uint8_t* values) {
    const int64_t pad = (v_dim + 15) / 16 * 16;
    if (v_dim % 16) { plain_turn_pairs(keys, v_dim, values); return; }
    const __m512i by_token = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (int64_t c = 0; c < v_dim; c += 16) {
        __m512i a[8], b[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) a[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(keys + (c / 2 + i) * 64), by_token);
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm512_unpacklo_epi64(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 1]);
        }
        // b[2 g + h]: channel pairs 2 g, 2 g + 1 of token pairs h, 2 + h, 4 + h, 6 + h.
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const __m512i low01 = _mm512_shuffle_i64x2(b[h], b[2 + h], 0x44), high01 = _mm512_shuffle_i64x2(b[h], b[2 + h], 0xee);
            const __m512i low23 = _mm512_shuffle_i64x2(b[4 + h], b[6 + h], 0x44), high23 = _mm512_shuffle_i64x2(b[4 + h], b[6 + h], 0xee);
            const __m512i rows[4] = {_mm512_shuffle_i64x2(low01, low23, 0x88), _mm512_shuffle_i64x2(low01, low23, 0xdd),
                                     _mm512_shuffle_i64x2(high01, high23, 0x88), _mm512_shuffle_i64x2(high01, high23, 0xdd)};
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) _mm512_storeu_si512(values + ((2 * j + h) * pad + c) * 4, rows[j]);
        }
    }
}

void lookup_expand(const uint8_t* codes, int64_t n, const CodeTable& table, const uint8_t* ahead, uint16_t* out) {
    const __m512i low0 = _mm512_load_si512(table.low), low1 = _mm512_load_si512(table.low + 64);
    const __m512i high0 = _mm512_load_si512(table.high), high1 = _mm512_load_si512(table.high + 64);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t i = 0; i < n; i += 64) {
        if (ahead) prefetch(ahead + i);
        const __m512i raw = _mm512_loadu_si512(codes + i), low = _mm512_permutex2var_epi8(low0, raw, low1);
        const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, raw, high1), raw,
                                                       _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
        const __m512i a = _mm512_unpacklo_epi8(low, high), b = _mm512_unpackhi_epi8(low, high);
        _mm512_storeu_si512(out + i, _mm512_permutex2var_epi64(a, first, b));
        _mm512_storeu_si512(out + i + 32, _mm512_permutex2var_epi64(a, second, b));
    }
}

constexpr AttendKernels kPairDots{kAttendDotRows, RP_DTYPE_BF16, dot_scores<kAttendDotRows>, dot_weigh<kAttendDotRows>,
                                  dot_values<kAttendDotRows>, permute_turn};
