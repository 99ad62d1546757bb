// Kernels over AMX tiles (amx_tiles.h). A panel is in tile form as it is packed: 16 of its steps, one of its four vectors of 16
// outputs, are the 16 rows of a tile of pairs (bf16) or quads (8-bit codes) of inputs.
//
// Up to 16 rows meet four vectors at once; up to 32 meet them two and two, so that every tile loaded is used twice. Blocks of
// inputs are the same whatever the rows, and a row of a product depends on its own row of A alone: no result depends on its batch.

constexpr int kAmxRows = 32, kAmxBlock = 16;  // rows of a call; steps of 4 bytes per row that one tile holds

// Sixteen rows of activations as a tile can load them: where they are when they lie evenly, else copied together.
struct RowTile {
    const uint8_t* const* rows;
    int count;
    int64_t stride;  // 0: not even
    alignas(64) uint8_t copy[kTileRows][kTileBytes];

    RowTile(const uint8_t* const* all, int from, int n) : rows(all + from), count(n), stride(n > 1 ? all[from + 1] - all[from] : kTileBytes) {
        for (int r = 2; r < n; r++)
            if (rows[r] - rows[r - 1] != stride) stride = 0;
    }
    // Bytes [offset, offset + bytes) of each row, zero up to `shape` bytes.
    template <class T, int Tile> void load(int64_t offset, int bytes, int shape) {
        if (stride && bytes == shape) return T::template load<Tile>(rows[0] + offset, stride);
        for (int r = 0; r < count; r++) {
            memcpy(copy[r], rows[r] + offset, static_cast<size_t>(bytes));
            memset(copy[r] + bytes, 0, static_cast<size_t>(shape - bytes));
        }
        T::template load<Tile>(copy, kTileBytes);
    }
};

// One vector of a panel, `steps` of the block's `shape` steps being there: the rest is zero.
template <class T, int Tile> inline void load_vector(const uint8_t* panel, int vector, int steps, int shape) {
    if (steps == shape) return T::template load<Tile>(panel + 64 * vector, 256);
    alignas(64) uint8_t copy[kTileRows][kTileBytes] = {};
    for (int s = 0; s < steps; s++) memcpy(copy[s], panel + 256 * s + 64 * vector, 64);
    T::template load<Tile>(copy, kTileBytes);
}

// Two tiles of rows against two vectors, or one against four. Sums are tiles 0 to 3, rows 4 and 5, weights 6 and 7.
template <int R> struct Grid {
    static constexpr int kVectors = 4 / R;
    static constexpr int sum(int r, int v) { return r * kVectors + v; }
    static constexpr int weights(int v) { return 6 + v % 2; }
};

inline TileShapes amx_shapes(int rows, int steps) {
    TileShapes shapes;
    const int first = rows < kTileRows ? rows : kTileRows, second = rows - first;
    const auto set = [&](int tile, int count, int bytes) {
        shapes.rows[tile] = static_cast<uint8_t>(count);
        shapes.bytes[tile] = static_cast<uint16_t>(count ? bytes : 0);
    };
    for (int tile = 0; tile < 4; tile++) set(tile, second && tile >= 2 ? second : first, kTileBytes);
    set(4, first, steps * 4);
    set(5, second, steps * 4);
    for (int tile = 6; tile < 8; tile++) set(tile, steps, kTileBytes);
    return shapes;
}

// body.operator()<0>() ... <N - 1>(): tile numbers are part of the instructions.
template <int N, int I = 0, class Body> inline void unrolled(Body&& body) {
    if constexpr (I < N) {
        body(std::integral_constant<int, I>{});
        unrolled<N, I + 1>(body);
    }
}

template <class T, int R> inline void amx_clear() {
    unrolled<4>([](auto tile) { T::template clear<tile.value>(); });
}

template <class T, int R, class Ahead> inline void amx_bf16_tile(const Tile& t, int first_vector, Ahead ahead) {
    using G = Grid<R>;
    RowTile rows[2] = {{t.x, 0, t.rows < kTileRows ? t.rows : kTileRows}, {t.x, R > 1 ? kTileRows : 0, R > 1 ? t.rows - kTileRows : 1}};
    amx_clear<T, R>();
    for (int64_t first = 0; first < t.steps; first += kAmxBlock) {
        const int steps = static_cast<int>(t.steps - first < kAmxBlock ? t.steps - first : kAmxBlock);
        for (int s = 0; s < steps; s++) ahead.step(t.panel + (first + s) * 256);
        unrolled<R>([&](auto r) { rows[r.value].template load<T, 4 + r.value>(first * 4, steps * 4, kTileBytes); });
        unrolled<G::kVectors>([&](auto v) {
            load_vector<T, G::weights(v.value)>(t.panel + first * 256, first_vector + v.value, steps, kAmxBlock);
            unrolled<R>([](auto r) { T::template dot_bf16<G::sum(r.value, decltype(v)::value), 4 + r.value, G::weights(decltype(v)::value)>(); });
        });
    }
    unrolled<R>([&](auto r) {
        unrolled<G::kVectors>([&](auto v) {
            T::template store<G::sum(decltype(r)::value, v.value)>(t.out + decltype(r)::value * kTileRows * kPanel + 16 * (first_vector + v.value), kPanel * 4);
        });
    });
}

template <class T> void amx_bf16(const Tile& t) {
    T::configure(amx_shapes(t.rows, kAmxBlock));
    if (t.rows <= kTileRows) {
        fetching<4>(t, 0, [&](auto ahead) { amx_bf16_tile<T, 1>(t, 0, ahead); });
    } else {
        for (int vector = 0; vector < 4; vector += 2)
            fetching<2>(t, 16 * vector, [&](auto ahead) { amx_bf16_tile<T, 2>(t, vector, ahead); });
    }
    T::release();
}

// Codes of one vector as quads of bytes: 8-bit ones as they are packed, 4-bit ones spread out, two rows for a step.
template <class T, int F, int Tile> inline void load_codes(const uint8_t* panel, int vector, int rows, int shape, __m512i table) {
    if constexpr (F == RP_INT8) {
        load_vector<T, Tile>(panel, vector, rows, shape);
    } else {
        alignas(64) uint8_t spread[kTileRows][kTileBytes];
        for (int row = 0; row < rows; row++)
            _mm512_store_si512(spread[row], codes_of<F>(panel + row / 2 * 256 + 64 * vector, row % 2, table));
        T::template load<Tile>(spread, kTileBytes);
    }
}

inline __m512i doubled_fp4() {
    return _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

// Adds a group's whole sums, [plane][row][output], to the float sums of its outputs: as vnni_tile does it, to the bit.
template <int F, int Planes, bool Grouped>
inline void amx_add_group(const Tile& t, const int32_t* sums, int64_t group_at, const uint8_t* scales, int first_vector, int vectors) {
    for (int v = first_vector; v < first_vector + vectors; v++) {
        const __m512 scale = Grouped ? scales_of<F>(scales, v) : _mm512_setzero_ps();
        for (int r = 0; r < t.rows; r++) {
            GroupHeader header;
            memcpy(&header, t.x[r] + group_at, sizeof header);
            __m512i plane[Planes];
            for (int p = 0; p < Planes; p++)
                plane[p] = _mm512_add_epi32(_mm512_set1_epi32(header.start[p]), _mm512_load_si512(sums + (p * kAmxRows + r) * kPanel + 16 * v));
            __m512i sum = plane[0];
            if (Planes == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), plane[Planes - 1]);
            const __m512 activation = _mm512_set1_ps(header.scale), factor = Grouped ? _mm512_mul_ps(scale, activation) : activation;
            float* total = t.out + r * kPanel + 16 * v;
            _mm512_storeu_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, _mm512_loadu_ps(total)));
        }
    }
}

template <class T, int F, int Planes, int R, bool Grouped, class Ahead> inline void amx_codes_tile(const Tile& t, int first_vector, Ahead ahead) {
    using G = Grid<R>;
    constexpr int kRowsPerStep = F == RP_INT8 ? 1 : 2;  // rows of a tile of weights that a step of the panel fills
    const __m512i table = F == RP_MXFP4 ? doubled_fp4() : _mm512_setzero_si512();
    const int64_t group = t.group_steps * (4 * kRowsPerStep);
    const int block = static_cast<int>(group / 4 < kAmxBlock ? group / 4 : kAmxBlock);  // rows of a tile of weights
    alignas(64) int32_t sums[Planes * kAmxRows * kPanel];
    RowTile rows[2] = {{t.x, 0, t.rows < kTileRows ? t.rows : kTileRows}, {t.x, R > 1 ? kTileRows : 0, R > 1 ? t.rows - kTileRows : 1}};
    const uint8_t* w = t.panel;
    for (int64_t first = 0, at = 0; first < t.steps; first += t.group_steps, at += group_bytes<Planes>(group)) {
        const uint8_t* scales = w;
        if (Grouped) {
            w += scale_bytes(F);
            ahead.scales(scales, scale_bytes(F));
        }
        const int64_t steps = t.steps - first < t.group_steps ? t.steps - first : t.group_steps, lines = steps * kRowsPerStep;
        for (int64_t s = 0; s < steps; s++) ahead.step(w + s * 256);
        for (int p = 0; p < Planes; p++) {
            amx_clear<T, R>();
            for (int64_t line = 0; line < lines; line += block) {
                const int there = static_cast<int>(lines - line < block ? lines - line : block);
                const int64_t offset = at + static_cast<int64_t>(sizeof(GroupHeader)) + p * group + line * 4;
                unrolled<R>([&](auto r) { rows[r.value].template load<T, 4 + r.value>(offset, block * 4, block * 4); });
                unrolled<G::kVectors>([&](auto v) {
                    load_codes<T, F, G::weights(v.value)>(w + line / kRowsPerStep * 256, first_vector + v.value, there, block, table);
                    unrolled<R>([](auto r) { T::template dot_s8_u8<G::sum(r.value, decltype(v)::value), 4 + r.value, G::weights(decltype(v)::value)>(); });
                });
            }
            unrolled<R>([&](auto r) {
                unrolled<G::kVectors>([&](auto v) {
                    constexpr int kRow = decltype(r)::value * kTileRows;
                    T::template store<G::sum(decltype(r)::value, v.value)>(sums + (p * kAmxRows + kRow) * kPanel + 16 * (first_vector + v.value), kPanel * 4);
                });
            });
        }
        w += steps * 256;
        amx_add_group<F, Planes, Grouped>(t, sums, at, scales, first_vector, G::kVectors);
    }
    if (Grouped) return;
    for (int v = first_vector; v < first_vector + G::kVectors; v++)
        for (int r = 0; r < t.rows; r++) {
            float* total = t.out + r * kPanel + 16 * v;
            _mm512_storeu_ps(total, _mm512_mul_ps(_mm512_loadu_ps(total), scales_of<F>(w, v)));
        }
}

template <class T, int F, int Planes, bool Grouped> inline void amx_codes_grid(const Tile& t) {
    const int64_t lines = t.group_steps * (F == RP_INT8 ? 1 : 2);
    memset(t.out, 0, static_cast<size_t>(t.rows) * kPanel * 4);
    T::configure(amx_shapes(t.rows, static_cast<int>(lines < kAmxBlock ? lines : kAmxBlock)));
    if (t.rows <= kTileRows) {
        fetching<4>(t, 0, [&](auto ahead) { amx_codes_tile<T, F, Planes, 1, Grouped>(t, 0, ahead); });
    } else {
        for (int vector = 0; vector < 4; vector += 2)
            fetching<2>(t, 16 * vector, [&](auto ahead) { amx_codes_tile<T, F, Planes, 2, Grouped>(t, vector, ahead); });
    }
    T::release();
}

// Whole sums are exact, so few rows, which a tile would leave mostly empty, take the vector kernels and give the same bits.
template <class T, int F, int Planes, int VectorRows> void amx_codes(const Tile& t) {
    if (t.rows >= kTileRows) {
        if (F != RP_INT8 || t.grouped) amx_codes_grid<T, F, Planes, true>(t);
        else amx_codes_grid<T, F, Planes, false>(t);
        return;
    }
    Tile part = t;
    for (int done = 0; done < t.rows; done += part.rows, part.follows = false, part.share = Share{{part.panel, part.panel}, {0, 0}}) {  // the first part fetches ahead
        part.x = t.x + done;
        part.out = t.out + done * kPanel;
        part.rows = t.rows - done < VectorRows ? t.rows - done : VectorRows;
        vnni_rows<F, Planes, VectorRows>(part);
    }
}

template <class T> double amx_peak(int32_t format, int64_t iterations) {
    const bool codes = format == RP_INT8 || format == RP_INT4 || format == RP_MXFP4;
    if (!codes && format != RP_BF16) return best_peak(format, iterations);
    T::configure(amx_shapes(kAmxRows, kAmxBlock));
    unrolled<8>([](auto tile) { T::template clear<tile.value>(); });
    for (int64_t i = 0; i < iterations / 64; i++)
        unrolled<2>([&](auto r) {
            unrolled<2>([&](auto v) {
                constexpr int kSum = Grid<2>::sum(decltype(r)::value, v.value);
                if (codes) T::template dot_s8_u8<kSum, 4 + decltype(r)::value, 6 + v.value>();
                else T::template dot_bf16<kSum, 4 + decltype(r)::value, 6 + v.value>();
            });
        });
    T::release();
    return static_cast<double>(iterations / 64) * 4 * (codes ? 2 * 16 * 16 * 64 : 2 * 16 * 16 * 32);
}

// A table's weight formats: bf16 by tiles for every number of rows, because the tile unit adds in an order of its own.
#define RP_AMX_FORMATS(T)                                                                                              \
    {                                                                                                                  \
        {kLaneRows, true, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},                                      \
        {kAmxRows, false, bf16_row_bytes, bf16_prepare, amx_bf16<T>},                                                  \
        {kAmxRows, false, planes_row_bytes<2>, planes_prepare<kInt8Zero, 2>, amx_codes<T, RP_INT8, 2, kA16Rows>},      \
        {kAmxRows, false, planes_row_bytes<2>, planes_prepare<kInt4Zero, 2>, amx_codes<T, RP_INT4, 2, kA16Rows>},      \
        {kAmxRows, false, planes_row_bytes<2>, planes_prepare<kFp4Zero, 2>, amx_codes<T, RP_MXFP4, 2, kA16Rows>},      \
        {kFp8Rows, false, bf16_row_bytes, bf16_prepare, fp8_rows<kFp8Rows>},                                           \
        {kAmxRows, false, bf16_row_bytes, bf16_prepare, amx_bf16<T>, 1},                                               \
    },                                                                                                                 \
    {                                                                                                                  \
        {}, {},                                                                                                        \
        {kAmxRows, false, planes_row_bytes<1>, planes_prepare<kInt8Zero, 1>, amx_codes<T, RP_INT8, 1, kA8Rows>},       \
        {kAmxRows, false, planes_row_bytes<1>, planes_prepare<kInt4Zero, 1>, amx_codes<T, RP_INT4, 1, kA8Rows>},       \
        {kAmxRows, false, planes_row_bytes<1>, planes_prepare<kFp4Zero, 1>, amx_codes<T, RP_MXFP4, 1, kA8Rows>},       \
        {}, {},                                                                                                        \
    },                                                                                                                 \
    kPairDots, kMixedLanes, kFloatLanes, lookup_expand, RP_ROW_FUNCTIONS, amx_peak<T>
