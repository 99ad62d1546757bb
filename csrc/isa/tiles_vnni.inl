// Tiles for integer codes through vpdpbusd: four products of an unsigned code and a signed byte per lane.
//
// Activations become fixed point with one scale per group of inputs: 16 bits as q = 256 hi + lo, two planes of signed
// bytes that each meet every weight line, or (a8) 8 bits, one plane. Integer sums are exact; a code's zero point is taken
// off by starting a group's sums at -zero * sum(q). A 16-bit group's sum is at most 32512 * 255 * 128 < 2^31 in magnitude.

struct GroupHeader {
    float scale;       // NaN when the group holds one, so that it shows in every output
    int32_t start[2];  // per plane, the high one first
    int32_t pad;
};
template <int Planes> constexpr int64_t group_bytes(int64_t inputs) {
    return static_cast<int64_t>(sizeof(GroupHeader)) + Planes * inputs;
}

template <int Planes> int64_t planes_row_bytes(const PackedWeight& w, int32_t) {
    return ceil_div(padded_inputs(w), scale_inputs(w)) * group_bytes<Planes>(scale_inputs(w));
}

inline void store_bytes(int8_t* to, __m512i q) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(q)); }

template <int Zero, int Planes> void planes_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    const int64_t group = scale_inputs(w);
    uint8_t* at = static_cast<uint8_t*>(row);
    each_group(w, x, dtype, [&](int64_t, const float* values) {
        const GroupScale scale = group_scale(values, group, Planes == 1 ? kLargestA8 : kLargestA16);
        int8_t* codes = reinterpret_cast<int8_t*>(at + sizeof(GroupHeader));
        __m512i sum[Planes];
        for (int p = 0; p < Planes; p++) sum[p] = _mm512_setzero_si512();
        for (int64_t i = 0; i < group; i += 16) {
            const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(values + i), _mm512_set1_ps(scale.inverse)));
            __m512i plane[2] = {q, q};
            if (Planes == 2) {
                plane[0] = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
                plane[1] = _mm512_sub_epi32(q, _mm512_slli_epi32(plane[0], 8));
            }
            for (int p = 0; p < Planes; p++) {
                sum[p] = _mm512_add_epi32(sum[p], plane[p]);
                store_bytes(codes + p * group + i, plane[p]);
            }
        }
        GroupHeader header{scale.scale, {0, 0}, 0};
        for (int p = 0; p < Planes; p++) header.start[p] = -Zero * _mm512_reduce_add_epi32(sum[p]);
        memcpy(at, &header, sizeof header);
        at += group_bytes<Planes>(group);
    });
}

// sum += four products a lane. In assembly because GCC copies the sum before and after the intrinsic, which doubles the
// instructions of a tile.
inline void dot(__m512i& sum, __m512i codes, __m512i bytes) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(bytes)); }

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

// R rows against 16 V outputs from `column` on.
template <int F, int Planes, int R, int V, bool Grouped, class Ahead> inline void vnni_tile(const Tile& t, int column, Ahead ahead) {
    constexpr int kHalves = F == RP_INT8 ? 1 : 2;
    const __m512i table = F == RP_MXFP4 ? _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0))
                                        : _mm512_setzero_si512();
    const int64_t group = t.group_steps * (4 * kHalves);
    __m512 total[R][V];
    const uint8_t* x[R];  // each row's group
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        x[r] = t.x[r];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[r][v] = _mm512_setzero_ps();
    }
    const uint8_t* w = t.panel;
    for (int64_t first = 0; first < t.steps; first += t.group_steps) {
        const uint8_t* scales = w;
        if (Grouped) {
            w += scale_bytes(F);
            ahead.scales(scales, scale_bytes(F));
        }
        __m512i acc[Planes][R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < Planes; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[p][r][v] = four(x[r] + offsetof(GroupHeader, start) + 4 * p);
        const int64_t n = t.steps - first < t.group_steps ? t.steps - first : t.group_steps;
        int64_t s = 0;
        do {
            const uint8_t* step = w + 256 * s;
            ahead.step(step);
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; half++) {
                __m512i code[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) code[v] = codes_of<F>(step + 64 * v + column * 4, half, table);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                    for (int p = 0; p < Planes; p++) {
                        const __m512i q = four(x[r] + sizeof(GroupHeader) + p * group + (s * kHalves + half) * 4);
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) dot(acc[p][r][v], code[v], q);
                    }
            }
        } while (++s < n);
        w += 256 * n;
        __m512 scale[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) scale[v] = Grouped ? scales_of<F>(scales, column / 16 + v) : _mm512_set1_ps(1.0f);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512 activation = _mm512_castsi512_ps(four(x[r] + offsetof(GroupHeader, scale)));
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                __m512i sum = acc[0][r][v];
                if (Planes == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), acc[Planes - 1][r][v]);
                const __m512 factor = Grouped ? _mm512_mul_ps(scale[v], activation) : activation;
                total[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, total[r][v]);
            }
            x[r] += group_bytes<Planes>(group);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            if (!Grouped) total[r][v] = _mm512_mul_ps(total[r][v], scales_of<F>(w, column / 16 + v));
            _mm512_storeu_ps(t.out + r * kPanel + column + 16 * v, total[r][v]);
        }
}

// Vectors of outputs taken at once: all 64 for as many rows as let both kinds of sums stay in registers, else 32 at a time.
// On Zen 5 each spilled sum takes the place of two products; only where groups are long, as with 8-bit codes, are a few cheap.
template <int F, int Planes> constexpr int vnni_vectors(int rows) {
    constexpr int kWhole = Planes == 2 ? 2 : F == RP_INT8 ? kWholeInt8Rows : kWholeInt4Rows;
    return rows <= kWhole ? 4 : 2;
}

template <int F, int Planes, int R> void vnni_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) vnni_rows<F, Planes, R - 1>(t); return; }
    constexpr int V = vnni_vectors<F, Planes>(R);
    for (int column = 0; column < kPanel; column += 16 * V)
        fetching<V>(t, column, [&](auto ahead) {
            if (F != RP_INT8 || t.grouped) vnni_tile<F, Planes, R, V, true>(t, column, ahead);
            else vnni_tile<F, Planes, R, V, false>(t, column, ahead);
        });
}

double integer_peak(int64_t iterations) {
    __m512i acc[12];
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) acc[i] = _mm512_setzero_si512();
    __m512i a = _mm512_set1_epi8(1);
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) dot(acc[j], a, a);
        asm volatile("" : "+v"(a));
    }
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    return _mm512_reduce_add_epi32(acc[0]) == 1 ? -1.0 : static_cast<double>(iterations) * 12 * 128;
}
double best_peak(int32_t format, int64_t iterations) {
    return format == RP_INT8 || format == RP_INT4 || format == RP_MXFP4 ? integer_peak(iterations) : dot_peak(format, iterations);
}
