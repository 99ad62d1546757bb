// y = x @ w.T + bias, for one matrix or one matrix per head.
#include "multiply.h"

namespace rp {
namespace {

// How the product is cut into items: strips (a panel, or half of one) by ranges of rows.
struct Cut {
    int64_t matrices, panels, strips, per_panel, per_item, chunks;
    int64_t items() const { return strips * chunks; }
    int64_t panel_of(int64_t item) const { return item / chunks / per_panel; }  // of all matrices
};

Cut cut(const LinearOp& op, int64_t rows, const KernelTable& table, int threads) {
    const PackedWeight& w = *op.weight;
    Cut c{};
    c.matrices = op.heads ? w.num_matrices : 1;
    c.panels = panels_of(w);
    // A router is a panel or two: its halves are worth sharing.
    c.per_panel = kernels_for(table, w).splits && c.matrices * c.panels < 2 * threads ? 2 : 1;
    c.strips = c.matrices * c.panels * c.per_panel;
    // Enough items to share evenly, few enough that a strip is read from memory once.
    const int64_t wanted = ceil_div(8 * threads, c.strips);
    c.per_item = wanted <= 1 ? rows : round_up(ceil_div(rows, wanted), 24);
    c.chunks = ceil_div(rows, c.per_item);
    return c;
}

const uint8_t* panel_of(const PackedWeight& w, const Cut& c, int64_t panel) {
    return panel_at(w, panel / c.panels, panel % c.panels);
}

const uint8_t* first_panel(const void* raw, int64_t rows, int thread, int threads) {
    const LinearOp& op = *static_cast<const LinearOp*>(raw);
    const Cut c = cut(op, rows, kernels(), threads);
    return panel_of(*op.weight, c, c.panel_of(Team::stretch_start(c.items(), thread, threads)));
}

Workspace workspace(const void* raw, int64_t rows, int) {
    const LinearOp& op = *static_cast<const LinearOp*>(raw);
    const int64_t matrices = op.heads ? op.weight->num_matrices : 1;
    return {matrices * rows * prepare_bytes(kernels(), *op.weight, op.x_dtype), plain_bytes(kernels(), *op.weight, rows)};
}

void body(const void* raw, int64_t rows, Region& region) {
    const LinearOp& op = *static_cast<const LinearOp*>(raw);
    const PackedWeight& w = *op.weight;
    const Cut c = cut(op, rows, region.table, region.team.size());
    const int64_t bytes = prepare_bytes(region.table, w, op.x_dtype);
    for (int64_t m = 0; m < c.matrices && bytes; m++)
        prepare_rows(region, w, offset(op.x, m * op.x_head_stride, op.x_dtype), op.x_dtype, op.x_stride, rows,
                     region.shared + m * rows * bytes);
    if (bytes) region.team.barrier();

    Ahead ahead;
    region.team.walk(region.thread, c.items(), [&](int64_t item, int64_t after) {
        const int64_t panel = c.panel_of(item), m = panel / c.panels, p = panel % c.panels;
        const int64_t first = item % c.chunks * c.per_item, count = rows - first < c.per_item ? rows - first : c.per_item;
        const uint8_t* next = after < c.items() ? panel_of(w, c, c.panel_of(after)) : region.after;
        ahead.clear();
        ahead.add(next ? next : panel_at(w, m, p));
        const int64_t half = item / c.chunks % c.per_panel;
        const Columns columns{static_cast<int32_t>(half * kPanel / c.per_panel), static_cast<int32_t>(kPanel / c.per_panel)};
        const int64_t column = p * kPanel + columns.first;
        const int64_t width = w.outputs - column < columns.count ? w.outputs - column : columns.count;
        if (width <= 0) return;
        Rows x{bytes ? region.shared + m * rows * bytes : offset(op.x, m * op.x_head_stride, op.x_dtype),
               bytes ? bytes : op.x_stride * (op.x_dtype == RP_DTYPE_F32 ? 4 : 2)};
        multiply(region, w, panel_at(w, m, p), ahead, count, [&](int64_t i) { return x.at(first + i); },
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

extern const Operator kLinear{workspace, body, first_panel};

}  // namespace rp
