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
    const float amax = fold_max(size), not_finite = fold_sum(finite);
    return {amax > kSmallestScaled ? amax / largest + not_finite : not_finite, amax > kSmallestScaled ? largest / amax : 0.0f};
}

inline const uint8_t* offset_of(const void* x, int64_t i, int32_t dtype) {
    return static_cast<const uint8_t*>(x) + i * (dtype == RP_DTYPE_F32 ? 4 : 2);
}

// A row as 8-bit activations stand for it, back in float32: what tiles without 8-bit products multiply.
inline void a8_prepare_f32(const PackedWeight& w, const void* x, int32_t dtype, void* row) {
    const int64_t group = scale_inputs(w), padded = padded_inputs(w);
    float* y = static_cast<float*>(row);
    for (int64_t first = 0; first < padded; first += group) {
        alignas(64) float wide[kActivationGroup] = {};
        const int64_t n = w.inputs - first < group ? w.inputs - first : group;
        if (n > 0) row_widen(offset_of(x, first, dtype), dtype, n, wide);
        const GroupScale scale = group_scale(wide, group, kLargestA8);
        for (int64_t i = 0; i < group && first + i < padded; i += 16) {
            const Lanes q = nearest(mul(load(wide + i), set1(scale.inverse)));
            store(wide + i, mul(q, set1(scale.scale)));
        }
        const int64_t room = padded - first < group ? padded - first : group;
        memcpy(y + first, wide, static_cast<size_t>(room) * 4);
    }
}
inline int64_t a8_row_bytes_f32(const PackedWeight& w, int32_t) { return padded_inputs(w) * 4; }
