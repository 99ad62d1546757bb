// Rounding activations to fixed point, one scale for a group of inputs: the same codes whatever the ISA.

constexpr float kLargestA8 = 127.0f, kLargestA16 = 32512.0f;
constexpr float kSmallestScaled = 7.8886e-31f;  // 2^-100: a group without anything larger counts as zero

struct GroupScale { float scale, inverse; };

// The scale that takes the largest of x[0, n) to `largest` (n a multiple of 16). NaN and infinity make it NaN, so that
// they show in every product.
inline GroupScale group_scale(const float* x, int64_t n, float largest) {
    Lanes size = zero(), finite = zero();
    for (int64_t i = 0; i < n; i += 16) {
        const Lanes v = load(x + i);
        size = vmax(size, vmax(v, sub(zero(), v)));
        finite = fma(v, zero(), finite);
    }
    const float amax = fold_max(size);
    const GroupScale found = amax > kSmallestScaled ? GroupScale{amax / largest, largest / amax} : GroupScale{0.0f, 0.0f};
    return any_nan(finite) ? GroupScale{__builtin_nanf(""), 0.0f} : found;
}

// use(first, values) for every group of w's inputs: `values` are x[first, first + group) in float32, zero beyond its end.
template <class Use> inline void each_group(const PackedWeight& w, const void* x, int32_t dtype, Use&& use) {
    const int64_t group = scale_inputs(w), padded = padded_inputs(w);
    alignas(64) float values[kActivationGroup];
    for (int64_t first = 0; first < padded; first += group) {
        const int64_t n = w.inputs - first < group ? w.inputs - first : group;
        const uint8_t* from = static_cast<const uint8_t*>(x) + first * (dtype == RP_DTYPE_F32 ? 4 : 2);
        if (n == group && dtype == RP_DTYPE_BF16) {
            for (int64_t i = 0; i < group; i += 16) store(values + i, load_bf16(reinterpret_cast<const uint16_t*>(from) + i));
        } else {
            memset(values, 0, sizeof values);
            if (n > 0) row_widen(from, dtype, n, values);
        }
        use(first, values);
    }
}

// A row as 8-bit activations stand for it, back in float32: what tiles without 8-bit products multiply.
inline int64_t a8_row_bytes_f32(const PackedWeight& w, int32_t) { return padded_inputs(w) * 4; }
inline void a8_prepare_f32(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    const int64_t group = scale_inputs(w), padded = padded_inputs(w);
    each_group(w, x, dtype, [&](int64_t first, float* values) {
        const GroupScale scale = group_scale(values, group, kLargestA8);
        for (int64_t i = 0; i < group; i += 16) {
            const Lanes q = nearest(mul(load(values + i), set1(scale.inverse)));
            store(values + i, mul(q, set1(scale.scale)));
        }
        const int64_t room = padded - first < group ? padded - first : group;
        memcpy(static_cast<float*>(row) + first, values, static_cast<size_t>(room) * 4);
    });
}
