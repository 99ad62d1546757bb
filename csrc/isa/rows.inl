// Functions over one row, written once over 16 lanes and compiled per ISA. Included inside an anonymous namespace.
// Every reduction keeps 16 running lanes and folds them by one fixed tree (`fold_sum`), whatever the ISA.

template <int D> inline Lanes load_as(const void* p, int64_t i) {
    if (D == RP_DTYPE_F32) return load(static_cast<const float*>(p) + i);
    return load_bf16(static_cast<const uint16_t*>(p) + i);
}
template <int D> inline void store_as(void* p, int64_t i, Lanes x) {
    if (D == RP_DTYPE_F32) store(static_cast<float*>(p) + i, x);
    else store_bf16(static_cast<uint16_t*>(p) + i, x);
}
// The last n < 16 elements, missing ones being `fill`.
template <int D> inline Lanes load_tail(const void* p, int64_t i, int64_t n, float fill) {
    float wide[16];
    for (int j = 0; j < 16; j++) wide[j] = fill;
    if (D == RP_DTYPE_F32) {
        for (int64_t j = 0; j < n; j++) wide[j] = static_cast<const float*>(p)[i + j];
    } else {
        for (int64_t j = 0; j < n; j++) {
            const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i + j]) << 16;
            memcpy(&wide[j], &bits, 4);
        }
    }
    return load(wide);
}
template <int D> inline void store_tail(void* p, int64_t i, int64_t n, Lanes x) {
    if (D == RP_DTYPE_F32) {
        float wide[16];
        store(wide, x);
        for (int64_t j = 0; j < n; j++) static_cast<float*>(p)[i + j] = wide[j];
    } else {
        uint16_t narrow[16];
        store_bf16(narrow, x);
        for (int64_t j = 0; j < n; j++) static_cast<uint16_t*>(p)[i + j] = narrow[j];
    }
}

// exp with a relative error of about 2 ulp; exactly 0 below -87.
inline Lanes exp_lanes(Lanes x) {
    const Lanes clipped = vmin(vmax(x, set1(-87.0f)), set1(88.0f));
    const Lanes n = nearest(mul(clipped, set1(1.44269504088896341f)));
    Lanes r = fma(n, set1(-0.693359375f), clipped);
    r = fma(n, set1(2.12194440e-4f), r);
    Lanes p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return zero_below(x, -87.0f, times_pow2(p, n));
}

// 2^x to 8e-5, a twentieth of what rounding to bf16 costs, between 2^-126 and 2^126.
inline Lanes rough_power_of_two(Lanes x) {
    const Lanes clipped = vmin(vmax(x, set1(-126.0f)), set1(126.0f)), n = nearest(clipped), r = sub(clipped, n);
    Lanes p = fma(set1(0.0551716685f), r, set1(0.242611125f));
    p = fma(p, r, set1(0.693260968f));
    return times_pow2(fma(p, r, set1(0.999928057f)), n);
}

// Rough: for results that are rounded to bf16.
template <bool Rough> inline Lanes glu_lanes(Lanes gate, Lanes up, int32_t activation, float alpha, float limit) {
    if (activation == 1) {
        gate = vmin(gate, set1(limit));
        up = add(vmin(vmax(up, set1(-limit)), set1(limit)), set1(1.0f));
    } else {
        alpha = 1.0f;
    }
    if (Rough) {
        const Lanes e = rough_power_of_two(mul(gate, set1(alpha * -1.44269504088896341f)));
        return mul(mul(gate, rough_inverse(add(set1(1.0f), e))), up);
    }
    const Lanes e = exp_lanes(mul(gate, set1(-alpha)));
    return mul(div(gate, add(set1(1.0f), e)), up);
}

float row_exp_sum(float* x, int64_t n, float max, float scale) {
    const Lanes m = set1(max), s = set1(scale);
    Lanes total = zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Lanes e = exp_lanes(mul(sub(load(x + i), m), s));
        store(x + i, e);
        total = add(total, e);
    }
    if (i < n) {
        const Lanes e = exp_lanes(mul(sub(load_tail<RP_DTYPE_F32>(x, i, n - i, -3.0e38f), m), s));
        store_tail<RP_DTYPE_F32>(x, i, n - i, e);
        total = add(total, e);
    }
    return fold_sum(total);
}

float row_max(const float* x, int64_t n) {
    Lanes best = set1(-3.4e38f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = vmax(best, load(x + i));
    if (i < n) best = vmax(best, load_tail<RP_DTYPE_F32>(x, i, n - i, -3.4e38f));
    return fold_max(best);
}

float row_largest(const float* x, int64_t n) {
    Lanes best = zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = vmax(best, vmax(load(x + i), sub(zero(), load(x + i))));
    float v[16], r = 0.0f;
    store(v, best);
    for (int j = 0; j < 16; j++) r = v[j] > r ? v[j] : r;
    for (; i < n; i++) {
        const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
        r = magnitude > r ? magnitude : r;
    }
    return r;
}

int64_t row_best(const float* x, int64_t n) {
    Lanes a = set1(-__builtin_inff()), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        a = vmax(a, load(x + i)); b = vmax(b, load(x + i + 16)); c = vmax(c, load(x + i + 32)); d = vmax(d, load(x + i + 48));
    }
    float v[16], top = -__builtin_inff();
    store(v, vmax(vmax(a, b), vmax(c, d)));
    for (int j = 0; j < 16; j++) top = v[j] > top ? v[j] : top;
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    int64_t at = -1;
    for (i = 0; i < n; i += 512) {
        const int64_t end = i + 512 < n ? i + 512 : n;
        int nan = 0, hit = 0;
        for (int64_t j = i; j < end; j++) { nan |= x[j] != x[j]; hit |= x[j] == top; }
        if (nan) return -1;
        if (hit && at < 0) for (at = i; x[at] != top;) at++;
    }
    return at;
}
float row_sum_from(const float* x, int64_t n, float floor) {
    Lanes total = zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) total = add(total, zero_below(load(x + i), floor, load(x + i)));
    if (i < n) {
        const Lanes last = load_tail<RP_DTYPE_F32>(x, i, n - i, 0.0f);
        total = add(total, zero_below(last, floor, last));
    }
    return fold_sum(total);
}
int64_t row_collect(const float* x, int64_t n, float floor, float* out) {
    int64_t count = 0, i = 0;
    for (; i + 16 <= n; i += 16) count += append_from(out + count, x + i, floor);
    for (; i < n; i++) if (x[i] >= floor) out[count++] = x[i];
    return count;
}

template <int D> float sum_squares_as(const void* x, int64_t n, float centre) {
    const Lanes c = set1(centre);
    Lanes total = zero(), others[3] = {zero(), zero(), zero()};  // chains that do not wait for each other
    const auto square = [&](Lanes& sum, int64_t i) {
        const Lanes d = sub(load_as<D>(x, i), c);
        sum = fma(d, d, sum);
    };
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        square(total, i);
        for (int j = 0; j < 3; j++) square(others[j], i + 16 * (j + 1));
    }
    for (; i + 16 <= n; i += 16) square(total, i);
    if (i < n) {
        const Lanes d = sub(load_tail<D>(x, i, n - i, centre), c);
        total = fma(d, d, total);
    }
    return fold_sum(add(add(total, others[0]), add(others[1], others[2])));
}
float row_sum_squares(const void* x, int32_t dtype, int64_t n, float centre) {
    return dtype == RP_DTYPE_F32 ? sum_squares_as<RP_DTYPE_F32>(x, n, centre) : sum_squares_as<RP_DTYPE_BF16>(x, n, centre);
}

template <int D> float sum_as(const void* x, int64_t n) {
    Lanes total = zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) total = add(total, load_as<D>(x, i));
    if (i < n) total = add(total, load_tail<D>(x, i, n - i, 0.0f));
    return fold_sum(total);
}
float row_sum(const void* x, int32_t dtype, int64_t n) {
    return dtype == RP_DTYPE_F32 ? sum_as<RP_DTYPE_F32>(x, n) : sum_as<RP_DTYPE_BF16>(x, n);
}

// y = (x - centre) * scale * (w + offset) + bias.
template <int D, int W>
void normalise_as(const void* x, const void* w, float offset, const void* bias, float centre, float scale, int64_t n, void* y) {
    const Lanes c = set1(centre), s = set1(scale), o = set1(offset);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Lanes g = add(load_as<W>(w, i), o);
        Lanes v = mul(mul(sub(load_as<D>(x, i), c), s), g);
        if (bias) v = add(v, load_as<W>(bias, i));
        store_as<D>(y, i, v);
    }
    if (i < n) {
        const Lanes g = add(load_tail<W>(w, i, n - i, 0.0f), o);
        Lanes v = mul(mul(sub(load_tail<D>(x, i, n - i, 0.0f), c), s), g);
        if (bias) v = add(v, load_tail<W>(bias, i, n - i, 0.0f));
        store_tail<D>(y, i, n - i, v);
    }
}
void row_normalise(const void* x, int32_t dtype, const void* w, int32_t w_dtype, float offset, const void* bias, float centre,
                   float scale, int64_t n, void* y) {
    constexpr int F = RP_DTYPE_F32, B = RP_DTYPE_BF16;
    auto run = dtype == F ? (w_dtype == F ? normalise_as<F, F> : normalise_as<F, B>)
                          : (w_dtype == F ? normalise_as<B, F> : normalise_as<B, B>);
    run(x, w, offset, bias, centre, scale, n, y);
}

template <int D> void add_scaled_as(const void* a, const void* b, float scale, int64_t n, void* y) {
    const Lanes s = set1(scale);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store_as<D>(y, i, fma(load_as<D>(b, i), s, load_as<D>(a, i)));
    if (i < n) store_tail<D>(y, i, n - i, fma(load_tail<D>(b, i, n - i, 0.0f), s, load_tail<D>(a, i, n - i, 0.0f)));
}
void row_add_scaled(const void* a, const void* b, float scale, int32_t dtype, int64_t n, void* y) {
    if (dtype == RP_DTYPE_F32) add_scaled_as<RP_DTYPE_F32>(a, b, scale, n, y);
    else add_scaled_as<RP_DTYPE_BF16>(a, b, scale, n, y);
}

template <int In, int Out>
void glu_as(const void* gate, const void* up, int64_t n, int32_t activation, float alpha, float limit, void* y) {
    constexpr bool kRough = Out == RP_DTYPE_BF16;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        store_as<Out>(y, i, glu_lanes<kRough>(load_as<In>(gate, i), load_as<In>(up, i), activation, alpha, limit));
    if (i < n)
        store_tail<Out>(y, i, n - i,
                        glu_lanes<kRough>(load_tail<In>(gate, i, n - i, 0.0f), load_tail<In>(up, i, n - i, 0.0f), activation, alpha, limit));
}
void row_glu_typed(const void* gate, const void* up, int32_t dtype, int64_t n, int32_t activation, float alpha, float limit,
                   void* y) {
    if (dtype == RP_DTYPE_F32) glu_as<RP_DTYPE_F32, RP_DTYPE_F32>(gate, up, n, activation, alpha, limit, y);
    else glu_as<RP_DTYPE_BF16, RP_DTYPE_BF16>(gate, up, n, activation, alpha, limit, y);
}
void row_glu(const float* gate, const float* up, int64_t n, int32_t activation, float alpha, float limit, int32_t dtype, void* y) {
    if (dtype == RP_DTYPE_F32) glu_as<RP_DTYPE_F32, RP_DTYPE_F32>(gate, up, n, activation, alpha, limit, y);
    else glu_as<RP_DTYPE_F32, RP_DTYPE_BF16>(gate, up, n, activation, alpha, limit, y);
}

void row_widen(const void* x, int32_t dtype, int64_t n, float* y) {
    if (dtype == RP_DTYPE_F32) { memcpy(y, x, static_cast<size_t>(n) * 4); return; }
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(y + i, load_as<RP_DTYPE_BF16>(x, i));
    if (i < n) store_tail<RP_DTYPE_F32>(y, i, n - i, load_tail<RP_DTYPE_BF16>(x, i, n - i, 0.0f));
}
void row_narrow(const float* x, int32_t dtype, int64_t n, void* y) {
    if (dtype == RP_DTYPE_F32) { memcpy(y, x, static_cast<size_t>(n) * 4); return; }
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store_as<RP_DTYPE_BF16>(y, i, load(x + i));
    if (i < n) store_tail<RP_DTYPE_BF16>(y, i, n - i, load_tail<RP_DTYPE_F32>(x, i, n - i, 0.0f));
}
void row_axpy(const float* x, const float* bias, float scale, int64_t n, float* y) {
    const Lanes s = set1(scale);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Lanes v = bias ? add(load(x + i), load(bias + i)) : load(x + i);
        store(y + i, fma(v, s, load(y + i)));
    }
    if (i < n) {
        Lanes v = load_tail<RP_DTYPE_F32>(x, i, n - i, 0.0f);
        if (bias) v = add(v, load_tail<RP_DTYPE_F32>(bias, i, n - i, 0.0f));
        store_tail<RP_DTYPE_F32>(y, i, n - i, fma(v, s, load_tail<RP_DTYPE_F32>(y, i, n - i, 0.0f)));
    }
}
// The constants come first in min and max, which then hand a NaN through.
template <int D> void map_as(const void* x, float scale, float limit, int64_t n, void* y) {
    const Lanes s = set1(scale), high = set1(limit), low = set1(-limit);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store_as<D>(y, i, vmin(high, vmax(low, mul(load_as<D>(x, i), s))));
    if (i < n) store_tail<D>(y, i, n - i, vmin(high, vmax(low, mul(load_tail<D>(x, i, n - i, 0.0f), s))));
}
void row_map(const void* x, int32_t dtype, float scale, float limit, int64_t n, void* y) {
    if (dtype == RP_DTYPE_F32) map_as<RP_DTYPE_F32>(x, scale, limit, n, y);
    else map_as<RP_DTYPE_BF16>(x, scale, limit, n, y);
}
void row_scale(float* x, float factor, int64_t n) {
    const Lanes s = set1(factor);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(x + i, mul(load(x + i), s));
    for (; i < n; i++) x[i] *= factor;
}
void row_multiply(float* x, const float* y, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(x + i, mul(load(x + i), load(y + i)));
    for (; i < n; i++) x[i] *= y[i];
}
void row_merge(float* acc, float* lanes, float* max, const float* from, const float* from_lanes, float from_max, float scale,
               int64_t n) {
    const float highest = *max > from_max ? *max : from_max;
    const Lanes keep = exp_lanes(mul(set1(*max - highest), set1(scale))), take = exp_lanes(mul(set1(from_max - highest), set1(scale)));
    for (int64_t i = 0; i < n; i += 16) store(acc + i, add(mul(load(acc + i), keep), mul(load(from + i), take)));
    store(lanes, add(mul(load(lanes), keep), mul(load(from_lanes), take)));
    *max = highest;
}
void row_divide(const float* x, const float* lanes, int64_t n, int32_t dtype, void* y) {
    const Lanes factor = set1(1.0f / fold_sum(load(lanes)));
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Lanes v = mul(load(x + i), factor);
        if (dtype == RP_DTYPE_F32) store_as<RP_DTYPE_F32>(y, i, v);
        else store_as<RP_DTYPE_BF16>(y, i, v);
    }
    if (i == n) return;
    const Lanes v = mul(load_tail<RP_DTYPE_F32>(x, i, n - i, 0.0f), factor);
    if (dtype == RP_DTYPE_F32) store_tail<RP_DTYPE_F32>(y, i, n - i, v);
    else store_tail<RP_DTYPE_BF16>(y, i, n - i, v);
}
inline float scalar_at(const void* p, int32_t dtype, int64_t i) {
    if (dtype == RP_DTYPE_F32) return static_cast<const float*>(p)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i]) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline void put_scalar(void* p, int32_t dtype, int64_t i, float value) {
    if (dtype == RP_DTYPE_F32) { static_cast<float*>(p)[i] = value; return; }
    store_tail<RP_DTYPE_BF16>(p, i, 1, set1(value));
}
template <int D> void rotate_halves(const void* x, const float* cos, const float* sin, int64_t half, void* y) {
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t n = half - i;
        const bool whole = n >= 16;
        const Lanes a = whole ? load_as<D>(x, i) : load_tail<D>(x, i, n, 0.0f);
        const Lanes b = whole ? load_as<D>(x, half + i) : load_tail<D>(x, half + i, n, 0.0f);
        const Lanes c = whole ? load(cos + i) : load_tail<RP_DTYPE_F32>(cos, i, n, 0.0f);
        const Lanes s = whole ? load(sin + i) : load_tail<RP_DTYPE_F32>(sin, i, n, 0.0f);
        const Lanes first = sub(mul(a, c), mul(b, s)), second = add(mul(b, c), mul(a, s));
        if (whole) { store_as<D>(y, i, first); store_as<D>(y, half + i, second); }
        else { store_tail<D>(y, i, n, first); store_tail<D>(y, half + i, n, second); }
    }
}
void row_rotate(const void* x, int32_t dtype, const float* cos, const float* sin, int64_t half, int32_t interleaved, void* y) {
    if (!interleaved) {
        if (dtype == RP_DTYPE_F32) rotate_halves<RP_DTYPE_F32>(x, cos, sin, half, y);
        else rotate_halves<RP_DTYPE_BF16>(x, cos, sin, half, y);
        return;
    }
    for (int64_t i = 0; i < half; i++) {
        const float a = scalar_at(x, dtype, 2 * i), b = scalar_at(x, dtype, 2 * i + 1);
        put_scalar(y, dtype, 2 * i, a * cos[i] - b * sin[i]);
        put_scalar(y, dtype, 2 * i + 1, b * cos[i] + a * sin[i]);
    }
}
double row_read_sum(const uint8_t* data, int64_t bytes) {
    Lanes a = zero(), b = zero(), c = zero(), d = zero();
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        const float* p = reinterpret_cast<const float*>(data + i);
        for (int line = 0; line < 4; line++) __builtin_prefetch(data + i + 64 * line + 8192, 0, 3);
        a = vmax(a, load(p)); b = vmax(b, load(p + 16)); c = vmax(c, load(p + 32)); d = vmax(d, load(p + 48));
    }
    return fold_sum(vmax(vmax(a, b), vmax(c, d)));
}
