// Tiles for integer codes through vpdpbusd: four products of an unsigned code and a signed byte per lane.
//
// Activations become 16-bit fixed point with one scale per group of inputs, q = 256 hi + lo with both signed bytes, so
// each weight line meets two planes. Integer sums are exact; a code's zero point is taken off by starting a group's sums
// at -zero * sum(q). A group's sum is at most 32512 * 255 * 128 < 2^31 in magnitude for 8-bit codes.

struct GroupHeader {
    float scale;
    int32_t start_hi, start_lo, pad;
};
constexpr int64_t group_bytes(int64_t inputs) { return static_cast<int64_t>(sizeof(GroupHeader)) + 2 * inputs; }

int64_t planes_row_bytes(const PackedWeight& w, int32_t) {
    return ceil_div(padded_inputs(w), scale_inputs(w)) * group_bytes(scale_inputs(w));
}

template <int Zero> void planes_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    const int64_t group = scale_inputs(w), padded = padded_inputs(w);
    uint8_t* at = static_cast<uint8_t*>(row);
    for (int64_t first = 0; first < padded; first += group, at += group_bytes(group)) {
        alignas(64) float wide[kActivationGroup] = {};
        const int64_t n = w.inputs - first < group ? w.inputs - first : group;
        if (n > 0) row_widen(static_cast<const uint8_t*>(x) + first * (dtype == RP_DTYPE_F32 ? 4 : 2), dtype, n, wide);
        __m512 largest = _mm512_setzero_ps();
        for (int64_t i = 0; i < group; i += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_load_ps(wide + i)));
        const float amax = _mm512_reduce_max_ps(largest);
        GroupHeader header{amax > 0.0f ? amax / 32512.0f : 0.0f, 0, 0, 0};
        const __m512 inverse = _mm512_set1_ps(amax > 0.0f ? 32512.0f / amax : 0.0f);
        int8_t *hi = reinterpret_cast<int8_t*>(at + sizeof(GroupHeader)), *lo = hi + group;
        __m512i sum_hi = _mm512_setzero_si512(), sum_lo = _mm512_setzero_si512();
        for (int64_t i = 0; i < group; i += 16) {
            const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(wide + i), inverse));
            const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
            const __m512i l = _mm512_sub_epi32(q, _mm512_slli_epi32(h, 8));
            sum_hi = _mm512_add_epi32(sum_hi, h);
            sum_lo = _mm512_add_epi32(sum_lo, l);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(hi + i), _mm512_cvtepi32_epi8(h));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(lo + i), _mm512_cvtepi32_epi8(l));
        }
        header.start_hi = -Zero * _mm512_reduce_add_epi32(sum_hi);
        header.start_lo = -Zero * _mm512_reduce_add_epi32(sum_lo);
        memcpy(at, &header, sizeof header);
    }
}

inline __m512i four(const uint8_t* p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}

// Codes of line v of a step: one vector of four inputs for 8-bit codes, two for 4-bit ones.
template <int F> inline __m512i codes_of(const uint8_t* line, int half, __m512i table) {
    const __m512i raw = _mm512_loadu_si512(line);
    if (F == RP_INT8) return raw;
    const __m512i nibble = _mm512_and_si512(half ? _mm512_srli_epi32(raw, 4) : raw, _mm512_set1_epi8(15));
    return F == RP_INT4 ? nibble : _mm512_shuffle_epi8(table, nibble);
}

template <int F> inline __m512 scales_of(const uint8_t* scales, int v) {
    if (F == RP_INT8) return _mm512_loadu_ps(reinterpret_cast<const float*>(scales) + 16 * v);
    if (F == RP_INT4) return load_bf16(reinterpret_cast<const uint16_t*>(scales) + 16 * v);
    // Half the power of two, because the codes are doubled; exponents below 2^-125 count as zero.
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 16 * v)));
    const __m512i halved = _mm512_max_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), _mm512_setzero_si512());
    return _mm512_castsi512_ps(_mm512_slli_epi32(halved, 23));
}

template <int F, int R, int V, bool Grouped> inline void vnni_tile(const Tile& t, int column) {
    constexpr int kHalves = F == RP_INT8 ? 1 : 2;
    const __m512i table = F == RP_MXFP4 ? _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0))
                                        : _mm512_setzero_si512();
    const int64_t group = t.group_steps * (4 * kHalves), stride = group_bytes(group);
    __m512 total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[r][v] = _mm512_setzero_ps();
    const uint8_t *w = t.panel, *ahead = t.prefetch;
    const uint8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) x[r] = t.x[r];
    for (int64_t first = 0; first < t.steps; first += t.group_steps) {
        const uint8_t* scales = w;
        if (Grouped) w += scale_bytes(F);
        const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
        __m512i hi[R][V], lo[R][V];
        const uint8_t* q[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            GroupHeader header;
            memcpy(&header, x[r], sizeof header);
            q[r] = x[r] + sizeof header;
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                hi[r][v] = _mm512_set1_epi32(header.start_hi);
                lo[r][v] = _mm512_set1_epi32(header.start_lo);
            }
        }
        for (int64_t s = 0; s < n; s++, w += 256) {
            if (ahead && column == 0) {
                prefetch(ahead);
                if (t.prefetch_lines > 1) prefetch(ahead + 64);
                if (t.prefetch_lines > 2) { prefetch(ahead + 128); prefetch(ahead + 192); }
                ahead += 64 * t.prefetch_lines;
            }
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; half++) {
                __m512i code[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) code[v] = codes_of<F>(w + 64 * v + column * 4, half, table);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const __m512i h = four(q[r] + (s * kHalves + half) * 4);
                    const __m512i l = four(q[r] + group + (s * kHalves + half) * 4);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        hi[r][v] = _mm512_dpbusd_epi32(hi[r][v], code[v], h);
                        lo[r][v] = _mm512_dpbusd_epi32(lo[r][v], code[v], l);
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const __m512 scale = Grouped ? scales_of<F>(scales, column / 16 + v) : _mm512_setzero_ps();
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                float activation;
                memcpy(&activation, x[r], 4);
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[r][v], 8), lo[r][v]));
                const __m512 factor = Grouped ? _mm512_mul_ps(scale, _mm512_set1_ps(activation)) : _mm512_set1_ps(activation);
                total[r][v] = _mm512_fmadd_ps(sum, factor, total[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) x[r] += stride;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            if (!Grouped) total[r][v] = _mm512_mul_ps(total[r][v], scales_of<F>(w, column / 16 + v));
            _mm512_storeu_ps(t.out + r * kPanel + column + 16 * v, total[r][v]);
        }
}

template <int F, int R> void vnni_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) vnni_rows<F, R - 1>(t); return; }
    // One or two rows take all 64 outputs at once; more rows take half the outputs at a time, to stay in registers.
    constexpr int V = R <= 1 ? 4 : R == 2 ? 4 : 2;
    for (int column = 0; column < kPanel; column += 16 * V) {
        if (F != RP_INT8 || t.grouped) vnni_tile<F, R, V, true>(t, column);
        else vnni_tile<F, R, V, false>(t, column);
    }
}

// fp8 (e4m3) becomes bf16 by two byte lookups (its 7 magnitude bits choose among 128 values), exactly, and meets the
// activation in the bf16 dot product; a group's sum is scaled once.
struct Fp8Tables {
    alignas(64) uint8_t low[128], high[128];
    Fp8Tables() {
        for (int code = 0; code < 128; code++) {
            const float value = fp8_value(static_cast<uint8_t>(code));
            uint32_t bits;
            memcpy(&bits, &value, 4);
            low[code] = static_cast<uint8_t>(bits >> 16);
            high[code] = static_cast<uint8_t>(bits >> 24);
        }
    }
};

template <int R> void fp8_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) fp8_rows<R - 1>(t); return; }
    static const Fp8Tables tables;
    const __m512i low0 = _mm512_load_si512(tables.low), low1 = _mm512_load_si512(tables.low + 64);
    const __m512i high0 = _mm512_load_si512(tables.high), high1 = _mm512_load_si512(tables.high + 64);
    constexpr int V = 2;
    for (int column = 0; column < kPanel; column += 16 * V) {
        const uint8_t *w = t.panel, *ahead = t.prefetch;
        __m512 total[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) total[r][v] = _mm512_setzero_ps();
        for (int64_t first = 0; first < t.steps; first += t.group_steps) {
            const float* scales = reinterpret_cast<const float*>(w) + column;
            w += scale_bytes(RP_FP8);
            const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
            __m512 acc[R][V];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[r][v] = _mm512_setzero_ps();
            for (int64_t s = first; s < first + n; s++, w += 256) {
                if (ahead && column == 0) {
                    for (int64_t i = 0; i < t.prefetch_lines; i++) prefetch(ahead + 64 * i);
                    ahead += 64 * t.prefetch_lines;
                }
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    const __m512i raw = _mm512_loadu_si512(w + 4 * column + 64 * v);
                    const __m512i low = _mm512_permutex2var_epi8(low0, raw, low1);
                    // high byte | sign: (raw & 0x80) | lookup
                    const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, raw, high1), raw,
                                                                   _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
                    const __m512bh a = (__m512bh)_mm512_unpacklo_epi8(low, high), b = (__m512bh)_mm512_unpackhi_epi8(low, high);
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, pair(t.x[r], 2 * s));
                        acc[r][v] = _mm512_dpbf16_ps(acc[r][v], b, pair(t.x[r], 2 * s + 1));
                    }
                }
            }
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const __m512 scale = _mm512_loadu_ps(scales + 16 * v);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) total[r][v] = _mm512_fmadd_ps(acc[r][v], scale, total[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) _mm512_storeu_ps(t.out + r * kPanel + column + 16 * v, total[r][v]);
    }
}

double integer_peak(int64_t iterations) {
    __m512i acc[12];
    for (int i = 0; i < 12; i++) acc[i] = _mm512_setzero_si512();
    __m512i a = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) acc[j] = _mm512_dpbusd_epi32(acc[j], a, a);
        asm volatile("" : "+v"(a));
    }
    for (int i = 1; i < 12; i++) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    return _mm512_reduce_add_epi32(acc[0]) == 1 ? -1.0 : static_cast<double>(iterations) * 12 * 128;
}
double best_peak(int32_t format, int64_t iterations) {
    return format == RP_INT8 || format == RP_INT4 || format == RP_MXFP4 ? integer_peak(iterations) : dot_peak(format, iterations);
}
