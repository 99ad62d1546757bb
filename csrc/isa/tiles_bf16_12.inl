// Tiles for bf16 in 12 bits, taken apart in registers. Few rows meet all outputs of a step; more meet one half of them after the other,
// so that weights are taken apart once for up to twelve. The tiles themselves are the ISA's, their products in the order of its tiles
// for plain bf16: sums are the same bits.

// Half of step k, mended if its exceptions are next.
template <bool Mend> inline void take_half(const Halves& halves, Exceptions& exceptions, const uint8_t* step, int64_t k, int half, __m512i& a, __m512i& b) {
    const __m512i codes = _mm512_loadu_si512(step);
    halves.take(half ? _mm512_srli_epi16(codes, 4) : codes, step + 64 + 64 * half, a, b);
    if (!Mend || !exceptions.in(2 * k + half)) return;
    exceptions.each([&](int word, uint32_t exponent) {
        const uint64_t at = uint64_t{1} << word;
        const __m512i bits = _mm512_set1_epi16(static_cast<int16_t>(exponent << 7)), kept = _mm512_set1_epi16(static_cast<int16_t>(0x807f));
        a = _mm512_mask_mov_epi16(a, static_cast<__mmask32>(at), _mm512_ternarylogic_epi32(bits, kept, a, 0xf8));
        b = _mm512_mask_mov_epi16(b, static_cast<__mmask32>(at >> 32), _mm512_ternarylogic_epi32(bits, kept, b, 0xf8));
    });
}

// Up to twelve rows at one stride, addressed from five registers. kPairBytes is the ISA's: of two inputs of a row.
struct EvenRows {
    const uint8_t *first, *seventh;
    int64_t stride, three, five;
    explicit EvenRows(const Tile& t)
        : first(t.x[0]), seventh(t.x[0] + 6 * (t.x[1] - t.x[0])), stride(t.x[1] - t.x[0]), three(3 * stride), five(5 * stride) {}
    void advance() {
        first += kPairBytes;
        seventh += kPairBytes;
    }
    const uint8_t* at(int r) const {
        const uint8_t* p = r < 6 ? first : seventh;
        switch (r % 6) {
            case 0: return p;
            case 1: return p + stride;
            case 2: return p + 2 * stride;
            case 3: return p + three;
            case 4: return p + 4 * stride;
            default: return p + five;
        }
    }
};

// The ISA's: R rows against all outputs, and rows at one stride against one half of them.
template <int R, class Ahead> void bf16_12_tile(const Tile& t, Ahead ahead);
template <int R, int Half, class Ahead> void bf16_12_half_tile(const Tile& t, Ahead ahead);

// Up to `Whole` rows meet all outputs at once; the first of two passes over halves fetches for both.
template <int R, int Whole> void bf16_12_rows(const Tile& t) {
    if (t.rows != R) { if constexpr (R > 1) bf16_12_rows<R - 1, Whole>(t); return; }
    if constexpr (R <= Whole) {
        fetching<3>(t, 0, [&](auto ahead) { bf16_12_tile<R>(t, ahead); });
    } else {
        if (t.follows) bf16_12_half_tile<R, 0>(t, Follow<3>(t, 0));
        else bf16_12_half_tile<R, 0>(t, Lead<2>(t, 0));
        bf16_12_half_tile<R, 1>(t, Lead<2>(t, 32));
    }
}
