// y = x @ w.T + bias, for one matrix or one matrix per head.
#include "multiply.h"

namespace rp {
namespace {

// Rows per item: enough items to share evenly, few enough that a strip is read from memory once.
int64_t rows_per_item(int64_t rows, int64_t strips, int threads) {
    const int64_t chunks = ceil_div(8 * threads, strips);
    return chunks <= 1 ? rows : round_up(ceil_div(rows, chunks), 24);
}

// A router is a panel or two: its halves are worth sharing.
int64_t strips_per_panel(const KernelTable& table, const PackedWeight& w, int64_t panels, int threads) {
    return kernels_for(table, w).splits && panels < 2 * threads ? 2 : 1;
}

Workspace workspace(const void* raw, int64_t rows, int) {
    const LinearOp& op = *static_cast<const LinearOp*>(raw);
    const int64_t matrices = op.heads ? op.weight->num_matrices : 1;
    return {matrices * rows * prepare_bytes(kernels(), *op.weight, op.x_dtype), 0};
}

void body(const void* raw, int64_t rows, Region& region) {
    const LinearOp& op = *static_cast<const LinearOp*>(raw);
    const PackedWeight& w = *op.weight;
    const int64_t matrices = op.heads ? w.num_matrices : 1, panels = panels_of(w);
    const int64_t bytes = prepare_bytes(region.table, w, op.x_dtype);
    for (int64_t m = 0; m < matrices && bytes; m++)
        prepare_rows(region, w, offset(op.x, m * op.x_head_stride, op.x_dtype), op.x_dtype, op.x_stride, rows,
                     region.shared + m * rows * bytes);
    if (bytes) region.team.barrier();

    const int64_t per_panel = strips_per_panel(region.table, w, matrices * panels, region.team.size());
    const int64_t strips = matrices * panels * per_panel;
    const int64_t per_item = rows_per_item(rows, strips, region.team.size()), chunks = ceil_div(rows, per_item);
    region.team.each(strips * chunks, [&](int64_t item, int64_t after) {
        const int64_t strip = item / chunks, panel = strip / per_panel, next_panel = after / chunks / per_panel;
        const int64_t m = panel / panels, p = panel % panels, first = item % chunks * per_item;
        const int64_t count = rows - first < per_item ? rows - first : per_item;
        const bool more = next_panel < matrices * panels && next_panel != panel;
        const uint8_t* next = more ? panel_at(w, next_panel / panels, next_panel % panels) : nullptr;
        const Columns columns{static_cast<int32_t>(strip % per_panel * kPanel / per_panel), static_cast<int32_t>(kPanel / per_panel)};
        const int64_t column = p * kPanel + columns.first;
        const int64_t width = w.outputs - column < columns.count ? w.outputs - column : columns.count;
        if (width <= 0) return;
        Rows x{bytes ? region.shared + m * rows * bytes : offset(op.x, m * op.x_head_stride, op.x_dtype),
               bytes ? bytes : op.x_stride * (op.x_dtype == RP_DTYPE_F32 ? 4 : 2)};
        multiply(region, w, panel_at(w, m, p), next, count, [&](int64_t i) { return x.at(first + i); },
                 [&](int64_t done, int64_t n, float* values) {
            for (int64_t r = 0; r < n; r++) {
                float* v = values + r * kPanel + columns.first;
                if (op.bias) region.table.add_scaled(v, op.bias + m * w.outputs + column, 1.0f, RP_DTYPE_F32, width, v);
                void* y = offset(op.y, (first + done + r) * op.y_stride + m * w.outputs + column, op.y_dtype);
                region.table.narrow(v, op.y_dtype, width, y);
            }
        }, columns);
    });
}

}  // namespace

extern const Operator kLinear{workspace, body};

}  // namespace rp
