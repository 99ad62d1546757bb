// The loop around a tile: any number of rows against one panel, in tiles of balanced height. Tiles fetch the memory that
// their thread reads next (isa/ahead.inl), which is why they are told of the panel that follows.
#pragma once
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

// tile(row0, count, values): `values` is count x 64 floats, valid during the call. row(i) is the i-th prepared row.
template <class Row, class Use>
void multiply(const Region& region, const PackedWeight& w, const uint8_t* panel, const uint8_t* next, int64_t n, Row&& row,
              Use&& use, Columns columns = {}) {
    const bool plain = expands(region.table, w, n);
    const FormatKernels& format = plain ? region.table.formats[RP_BF16] : kernels_for(region.table, w);
    alignas(64) float values[kMaxRows * kPanel];
    const uint8_t* pointers[kMaxRows];
    const int64_t groups = ceil_div(n, format.max_rows);
    Tile tile{};
    tile.panel = plain ? region.local : panel;
    tile.panel_next = next;
    tile.x = pointers;
    tile.out = values;
    tile.steps = steps_of(w);
    tile.group_steps = static_cast<int32_t>(scale_inputs(w) / step_inputs(w.format));
    tile.grouped = w.group != 0;
    tile.panel_bytes = plain ? steps_of(w) * 256 : read_bytes_of(w);
    tile.next_bytes = read_bytes_of(w);
    tile.first_column = columns.first;
    tile.columns = columns.count;
    tile.turns = static_cast<int32_t>(groups);
    if (plain) region.table.expand_bf16_12(panel, tile.steps, reinterpret_cast<uint16_t*>(region.local));
    int64_t done = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t count = (n - done) / (groups - g);
        for (int64_t r = 0; r < count; r++) pointers[r] = row(done + r);
        tile.rows = static_cast<int32_t>(count);
        tile.turn = static_cast<int32_t>(g);
        format.tile(tile);
        use(done, count, values);
        done += count;
    }
}

// A stride for rows of so many bytes: an odd number of lines, so that rows of a tile lie in different sets of a cache.
inline int64_t row_stride(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

// Brings rows of activations into the form of w's tiles, sharing the work. Needs a barrier before the rows are read
// when `prepare_bytes` is not 0.
inline int64_t prepare_bytes(const KernelTable& table, const PackedWeight& w, int32_t dtype) {
    return round_up(kernels_for(table, w).row_bytes(w, dtype), 64);
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
