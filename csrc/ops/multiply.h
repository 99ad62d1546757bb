// The loop around a tile: any number of rows against one panel, in tiles of balanced height, which fetch what their thread
// reads afterwards (ahead.h).
#pragma once
#include "ahead.h"
#include "op.h"

namespace rp {

// Rows as the tile wants them: where they are when the format reads them in place, else prepared in the workspace.
struct Rows {
    const uint8_t* base;
    int64_t stride_bytes;
    const uint8_t* at(int64_t i) const { return base + i * stride_bytes; }
};

// The outputs of a panel that an item computes.
struct Columns { int32_t first = 0, count = kPanel; };

// A panel of RP_BF16_12 for several tiles is made plain once, at the beginning of the thread's own workspace.
inline bool expands(const KernelTable& table, const PackedWeight& w, int64_t rows) {
    const FormatKernels& format = kernels_for(table, w);
    return format.expands_from && ceil_div(rows, format.max_rows) >= format.expands_from;
}
inline int64_t plain_bytes(const KernelTable& table, const PackedWeight& w, int64_t most_rows) {
    return expands(table, w, most_rows) ? steps_of(w) * 256 : 0;
}

struct Nothing {
    void operator()(int64_t) const {}
};

// use(row0, count, values): `values` is count x 64 floats, valid during the call. row(i) is the i-th prepared row.
// between(arrived): after a tile, with how many of the panels ahead have had its time to arrive.
template <class Row, class Use, class Between = Nothing>
void multiply(const Region& region, const PackedWeight& w, const uint8_t* panel, Ahead& ahead, int64_t n, Row&& row, Use&& use,
              Columns columns = {}, const Between& between = {}) {
    const bool plain = expands(region.table, w, n);
    const FormatKernels& format = plain ? region.table.formats[RP_BF16] : kernels_for(region.table, w);
    alignas(64) float values[kMaxRows * kPanel];
    const uint8_t* pointers[kMaxRows];
    const int64_t tiles = ceil_div(n, format.max_rows), bytes = read_bytes_of(w);
    const bool halves = format.even_from && n >= format.even_from;  // even one tile reads the panel twice, half by half
    const bool alone = tiles == 1 && !halves;
    Tile tile{};
    tile.panel = plain ? region.local : panel;
    tile.panel_next = panel;
    tile.x = pointers;
    tile.out = values;
    tile.steps = steps_of(w);
    tile.group_steps = static_cast<int32_t>(scale_inputs(w) / step_inputs(w.format));
    tile.grouped = w.group != 0;
    tile.panel_bytes = plain ? steps_of(w) * 256 : bytes;
    tile.follows = ahead.count() && !plain && (alone || !ahead.is_ready(panel));
    tile.first_column = columns.first;
    tile.columns = columns.count;
    if (plain) region.table.expand_bf16_12(panel, tile.steps, reinterpret_cast<uint16_t*>(region.local));
    // Halves of tiles that fetch nothing of what is to come.
    const int64_t own = ahead.count() == 0 ? 2 * tiles : !tile.follows ? 0 : halves ? 1 : 2;
    Pieces pieces(ahead, bytes, 2 * tiles - own);
    int64_t done = 0;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t count = (n - done) / (tiles - t), arrived = pieces.whole();
        for (int64_t r = 0; r < count; r++) pointers[r] = row(done + r);
        tile.rows = static_cast<int32_t>(count);
        tile.share = {{panel, panel}, {0, 0}};
        for (int64_t half = 0; half < 2; half++)
            if (2 * t + half >= own) pieces.next(tile.share.at[half], tile.share.bytes[half]);
        if (ahead.count()) tile.panel_next = ahead.panels()[std::max<int64_t>(pieces.begun() - 1, 0)];
        format.tile(tile);
        use(done, count, values);
        between(arrived);
        tile.follows = false;
        done += count;
    }
    if (ahead.count()) ahead.fetched(!alone);
}

// A stride for rows of so many bytes: an odd number of lines, so that rows of a tile lie in different sets of a cache.
inline int64_t row_stride(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

// Brings rows of activations into the form of w's tiles, sharing the work. Needs a barrier before the rows are read
// when `prepare_bytes` is not 0.
inline int64_t prepare_bytes(const KernelTable& table, const PackedWeight& w, int32_t dtype) {
    const int64_t bytes = kernels_for(table, w).row_bytes(w, dtype);
    return bytes ? row_stride(bytes) : 0;
}
inline int64_t bytes_of_row(const KernelTable& table, const PackedWeight& w, int32_t dtype) {  // in the form of w's tiles
    const int64_t prepared = kernels_for(table, w).row_bytes(w, dtype);
    return prepared ? prepared : w.inputs * (dtype == RP_DTYPE_F32 ? 4 : 2);
}
inline Rows prepare_rows(Region& region, const PackedWeight& w, const void* x, int32_t dtype, int64_t stride, int64_t n,
                         uint8_t* into) {
    const int64_t bytes = prepare_bytes(region.table, w, dtype);
    if (bytes == 0) return {static_cast<const uint8_t*>(x), stride * (dtype == RP_DTYPE_F32 ? 4 : 2)};
    const int64_t size = region.team.size();
    for (int64_t i = region.thread; i < n; i += size)
        kernels_for(region.table, w).prepare(w, offset(x, i * stride, dtype), dtype, into + i * bytes);
    return {into, bytes};
}

}  // namespace rp
