// Tiles for processors with the bf16 dot product (vdpbf16ps): two products per lane and instruction, exact products,
// float32 sums, inputs and sums flushed when denormal.

int64_t bf16_row_bytes(const PackedWeight& w, int32_t dtype) {
    return dtype == RP_DTYPE_BF16 && w.inputs == padded_inputs(w) ? 0 : padded_inputs(w) * 2;
}
void bf16_prepare(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    uint16_t* y = static_cast<uint16_t*>(row);
    if (dtype == RP_DTYPE_F32) row_narrow(static_cast<const float*>(x), RP_DTYPE_BF16, w.inputs, y);
    else memcpy(y, x, static_cast<size_t>(w.inputs) * 2);
    for (int64_t i = w.inputs; i < padded_inputs(w); i++) y[i] = 0;
}

inline __m512bh pairs(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh pair(const uint8_t* row, int64_t k) {
    int32_t bits;
    memcpy(&bits, row + 4 * k, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
}

template <int R, class Ahead> inline void bf16_dot_tile(const Tile& t, Ahead ahead) {
    __m512 acc[R][4];
    const uint8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        x[r] = t.x[r];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r][v] = _mm512_setzero_ps();
    }
    const uint8_t* w = t.panel;
    for (int64_t k = 0; k < t.steps; k++, w += 256) {
        ahead.step(w);
        const __m512bh w0 = pairs(w), w1 = pairs(w + 64), w2 = pairs(w + 128), w3 = pairs(w + 192);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512bh s = pair(x[r], k);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], w0, s);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], w1, s);
            acc[r][2] = _mm512_dpbf16_ps(acc[r][2], w2, s);
            acc[r][3] = _mm512_dpbf16_ps(acc[r][3], w3, s);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) _mm512_storeu_ps(t.out + r * kPanel + 16 * v, acc[r][v]);
}

template <int R> void bf16_dot_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) bf16_dot_rows<R - 1>(t); return; }
    fetching<4>(t, 0, [&](auto ahead) { bf16_dot_tile<R>(t, ahead); });
}

double dot_peak(int32_t format, int64_t iterations) {
    if (format != RP_BF16) return lanes_peak(format, iterations);
    __m512 acc[12];
    for (int i = 0; i < 12; i++) acc[i] = _mm512_setzero_ps();
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) acc[j] = _mm512_dpbf16_ps(acc[j], a, a);
        asm volatile("" : "+v"(a));
    }
    for (int i = 1; i < 12; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    return fold_sum(acc[0]) < 0.0f ? -1.0 : static_cast<double>(iterations) * 12 * 64;
}
