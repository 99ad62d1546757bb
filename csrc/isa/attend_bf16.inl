// Attention tiles by the bf16 dot product, and the two permutations that bring other caches to it: codes looked up as
// bf16, and a sub-block of keys turned into one of values.

constexpr int kAttendDotRows = 6;

template <int R, int S, bool Ask> inline void dot_scores_tile(const AttendTile& t, int64_t first) {
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
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int s = 0; s < S; s++) _mm512_storeu_ps(t.scores + r * t.score_stride + 16 * (first + s), acc[r][s]);
}
template <int R, bool Ask> void dot_scores_rows(const AttendTile& t) {
    int64_t s = 0;
    for (; s + 4 <= t.sub_blocks; s += 4) dot_scores_tile<R, 4, Ask>(t, s);
    const int64_t left = t.sub_blocks - s;
    if (left == 3) dot_scores_tile<R, 3, Ask>(t, s);
    if (left == 2) dot_scores_tile<R, 2, Ask>(t, s);
    if (left == 1) dot_scores_tile<R, 1, Ask>(t, s);
}
template <int R> void dot_scores(const AttendTile& t) {
    if (t.rows != R) { if constexpr (R > 1) dot_scores<R - 1>(t); return; }
    if (t.prefetch) dot_scores_rows<R, true>(t);
    else dot_scores_rows<R, false>(t);
}

// 2^x to 8e-5, a twentieth of what rounding to bf16 costs; 0 far below, and for -inf.
inline __m512 rough_exp2(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 p = _mm512_fmadd_ps(set1(0.0780245215f), r, set1(0.226067156f));
    p = _mm512_fmadd_ps(p, r, set1(0.695833564f));
    p = _mm512_fmadd_ps(p, r, set1(0.999925196f));
    return _mm512_scalef_ps(p, x);  // floors x
}

// use(i, seen) for the vectors of 16 keys that overlap [begin, end): whole ones two at a time as pair(i), the others masked.
template <class Pair, class Use> inline void each_seen(int64_t begin, int64_t end, Pair&& pair, Use&& use) {
    int64_t i = begin / 16 * 16;
    const auto partial = [&] {
        const uint32_t from = begin > i ? 0xffffu << (begin - i) : 0xffffu, to = end < i + 16 ? 0xffffu >> (i + 16 - end) : 0xffffu;
        use(i, static_cast<__mmask16>(from & to));
        i += 16;
    };
    if (i < begin && i < end) partial();
    for (; i + 32 <= end; i += 32) pair(i);
    while (i < end) partial();
}

// The largest score that row r sees; codes' scores get their scales on the way.
template <bool Coded> inline float dot_highest(const AttendTile& t, int32_t r) {
    float* scores = t.scores + r * t.score_stride;
    const auto score = [&](int64_t i) {
        __m512 s = load(scores + i);
        if (Coded) {
            s = mul(s, load(t.key_scales + i));
            if (t.rotary) s = fma(load(t.rotary + r * t.score_stride + i), load(t.rotary_scales + i), s);
            store(scores + i, s);
        }
        return s;
    };
    __m512 even = set1(kHiddenScore), odd = even;
    each_seen(t.begin[r], t.end[r], [&](int64_t i) {
        even = _mm512_max_ps(score(i), even);
        odd = _mm512_max_ps(score(i + 16), odd);
    }, [&](int64_t i, __mmask16 seen) { even = _mm512_mask_max_ps(even, seen, score(i), even); });
    return fold_max(_mm512_max_ps(even, odd));
}

// Weights of row r; a code's value scale counts in the product and not in the sum.
template <bool Coded> inline void dot_weights(const AttendTile& t, int32_t r, float unit) {
    const float* scores = t.scores + r * t.score_stride;
    uint16_t* weights = reinterpret_cast<uint16_t*>(t.weights + r * t.score_stride / 2);
    const int64_t begin = t.begin[r], end = t.end[r], first = begin < end ? begin / 16 * 16 : t.valid, last = begin < end ? end : 0;
    const __m512 scale = set1(unit), offset = set1(-t.max[r] * unit);
    __m512 total = load(t.sums + 16 * r);  // one chain of sums: where pairs begin depends on the row's company
    const auto weight = [&](int64_t i) { return rough_exp2(fma(load(scores + i), scale, offset)); };
    const auto put = [&](int64_t i, __m512 w) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights + i), (__m256i)_mm512_cvtneps_pbh(w));
    };
    for (int64_t i = 0; i < first; i += 16) put(i, zero());
    each_seen(begin, end, [&](int64_t i) {
        __m512 a = weight(i), b = weight(i + 16);
        total = add(add(total, a), b);
        if (Coded) {
            a = mul(a, load(t.value_scales + i));
            b = mul(b, load(t.value_scales + i + 16));
        }
        _mm512_storeu_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }, [&](int64_t i, __mmask16 seen) {
        const __m512 w = _mm512_maskz_mov_ps(seen, weight(i));
        total = add(total, w);
        put(i, Coded ? _mm512_maskz_mul_ps(seen, w, load(t.value_scales + i)) : w);
    });
    for (int64_t i = (last + 15) / 16 * 16; i < t.valid; i += 16) put(i, zero());
    store(t.sums + 16 * r, total);
}

template <bool Coded> void dot_weigh_tile(const AttendTile& t) {
    const float unit = t.scale * 1.44269504088896341f;  // weights are powers of two
    float highest[kAttendDotRows];
    for (int32_t r = 0; r < t.rows; r++) highest[r] = dot_highest<Coded>(t, r);
    for (int32_t r = 0; r < t.rows; r++) {
        if (highest[r] <= t.max[r]) continue;
        const __m512 shrink = rough_exp2(set1((t.max[r] - highest[r]) * unit));
        store(t.sums + 16 * r, mul(load(t.sums + 16 * r), shrink));
        for (int64_t c = 0; c < t.v_dim; c += 16) store(t.out + r * t.v_dim + c, mul(load(t.out + r * t.v_dim + c), shrink));
        t.max[r] = highest[r];
    }
    for (int32_t r = 0; r < t.rows; r++) dot_weights<Coded>(t, r, unit);
}
void dot_weigh(const AttendTile& t) {
    if (t.key_scales) dot_weigh_tile<true>(t);
    else dot_weigh_tile<false>(t);
}

template <int R, int C, bool Ask>
inline void dot_values_tile(const AttendTile& t, int64_t column) {
    __m512 acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[r][c] = _mm512_loadu_ps(t.out + r * t.v_dim + column + 16 * c);
    const int64_t whole = t.valid / 2, stride = t.score_stride / 2;
    const auto step = [&](int64_t j, __m512i keep) {
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

constexpr AttendKernels kPairDots{kAttendDotRows, RP_DTYPE_BF16, dot_scores<kAttendDotRows>, dot_weigh,
                                  dot_values<kAttendDotRows>, permute_turn};
