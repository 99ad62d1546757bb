// Routed experts of one layer in three phases: sort (token, expert) pairs by expert; gate and up with the activation in
// the epilogue; down with the weighted sum in the epilogue.
//
// In the second an item is a panel for a group: rows of one expert, which every thread that meets them copies together first, if
// the format's tiles want them at one stride.
//
// In the last phase an item owns some panels' columns of y for a range of tokens and visits the experts in ascending order,
// so a token's sum has one order whatever its batch, nothing is written twice, and no atomics are needed.
#include <algorithm>

#include "multiply.h"

namespace rp {
namespace {

struct Group { int64_t expert, first_pair, pairs; };

struct Plan {  // pointers into the shared workspace
    uint8_t* x_rows;        // prepared x
    uint8_t* h;             // [M, F padded] in x's dtype
    uint8_t* h_rows;        // prepared h
    int64_t* first;         // [E + 1] first pair of each expert
    int32_t* hit;           // experts that have pairs, ascending
    int32_t* token;         // [M]
    float* weight;          // [M]
    Group* groups;
    int64_t *num_hit, *num_groups;
    int64_t h_stride, x_bytes, h_bytes, most_grouped;
};

constexpr int64_t kGroupBytes = 1 << 19;  // of rows copied together: they stay in a second-level cache beside a panel
constexpr int64_t kGroupRows = 24;        // or at least so many

// Pairs of a group: all of an expert, unless they are copied.
int64_t most_grouped(const MoeOp& op, int64_t rows, const KernelTable& table) {
    if (!kernels_for(table, *op.gate_up).even_from) return std::max<int64_t>(rows, 1);
    return std::max(kGroupBytes / row_stride(bytes_of_row(table, *op.gate_up, op.x_dtype)), kGroupRows);
}

Plan plan(const MoeOp& op, int64_t rows, uint8_t* base, const KernelTable& table, int64_t* used) {
    const int64_t pairs = rows * op.top_k, experts = op.gate_up->num_matrices;
    Carver carve(base);
    Plan p{};
    p.x_bytes = prepare_bytes(table, *op.gate_up, op.x_dtype);
    p.h_bytes = prepare_bytes(table, *op.down, op.x_dtype);
    p.h_stride = panels_of(*op.gate_up) * (kPanel / 2);
    p.most_grouped = most_grouped(op, rows, table);
    p.x_rows = carve.take<uint8_t>(rows * p.x_bytes);
    p.h = carve.take<uint8_t>(pairs * p.h_stride * (op.x_dtype == RP_DTYPE_F32 ? 4 : 2));
    p.h_rows = carve.take<uint8_t>(pairs * p.h_bytes);
    p.first = carve.take<int64_t>(experts + 1);
    p.hit = carve.take<int32_t>(experts);
    p.token = carve.take<int32_t>(pairs);
    p.weight = carve.take<float>(pairs);
    p.groups = carve.take<Group>(experts + pairs / p.most_grouped);
    p.num_hit = carve.take<int64_t>(1);
    p.num_groups = carve.take<int64_t>(1);
    if (used) *used = carve.used;
    return p;
}

// Counting sort; pairs of one expert stay in token order.
void sort_pairs(const MoeOp& op, int64_t rows, const Plan& p, std::atomic<int>& error) {
    const int64_t pairs = rows * op.top_k, experts = op.gate_up->num_matrices;
    memset(p.first, 0, static_cast<size_t>(experts + 1) * 8);
    for (int64_t i = 0; i < pairs; i++) {
        const int64_t e = op.expert_ids[i];
        if (e < 0 || e >= experts) { error.store(kBadExpertId); *p.num_hit = 0; return; }
        p.first[e + 1]++;
    }
    int64_t hits = 0, groups = 0;
    for (int64_t e = 0; e < experts; e++) {
        const int64_t n = p.first[e + 1], parts = ceil_div(n, p.most_grouped);
        if (n) p.hit[hits++] = static_cast<int32_t>(e);
        for (int64_t i = 0; i < parts; i++)
            p.groups[groups++] = {e, p.first[e] + n * i / parts, n * (i + 1) / parts - n * i / parts};
        p.first[e + 1] += p.first[e];
    }
    *p.num_hit = hits;
    *p.num_groups = groups;
    for (int64_t i = 0; i < pairs; i++) {
        const int64_t at = p.first[op.expert_ids[i]]++;
        p.token[at] = static_cast<int32_t>(i / op.top_k);
        p.weight[at] = op.weights[i];
    }
    for (int64_t e = experts; e > 0; e--) p.first[e] = p.first[e - 1];
    p.first[0] = 0;
}

// How the last phase is cut into items: for few rows, where memory binds, runs of panels that lie side by side in every
// expert; for many, ranges of tokens.
struct Cut {
    int64_t run, runs;       // panels an item owns; how many such runs
    int64_t tokens, chunks;  // of an item; how many such ranges
};
constexpr int64_t kSumBytes = 1 << 16;  // of an item with more than one panel, so that sums stay in a second-level cache
constexpr int64_t kRunsPerThread = 2;   // the longer a run, the faster it is read; the more, the better shared

Cut cut(int64_t rows, int64_t panels, int threads) {
    const int64_t room = kSumBytes / (rows * kPanel * 4), share = ceil_div(panels, kRunsPerThread * threads);
    const int64_t run = room < 1 ? 1 : room < share ? room : share, runs = ceil_div(panels, run);
    const int64_t wanted = ceil_div(8 * threads, runs), possible = ceil_div(rows, 256);
    const int64_t chunks = run > 1 ? 1 : wanted < possible ? wanted : possible;
    return {run, runs, ceil_div(rows, chunks), chunks};
}

// The panel of the last phase that this thread starts with.
const uint8_t* first_down(const MoeOp& op, int64_t rows, const Plan& p, const Region& region) {
    const Cut c = cut(rows, panels_of(*op.down), region.team.size());
    const int64_t item = Team::stretch_start(c.runs * c.chunks, region.thread, region.team.size());
    return panel_at(*op.down, p.hit[0], item / c.chunks * c.run);
}

// Of a thread's own workspace, what lies before copied rows, and then before sums.
int64_t most_plain_bytes(const MoeOp& op, int64_t rows, const KernelTable& table) {
    return std::max(plain_bytes(table, *op.gate_up, rows), plain_bytes(table, *op.down, rows));
}

// Whether tiles for so many rows want them at one stride.
bool even(const MoeOp& op, int64_t pairs, const KernelTable& table) {
    const int64_t from = kernels_for(table, *op.gate_up).even_from;
    return from && pairs >= from;
}
int64_t group_bytes(const MoeOp& op, int64_t rows, const KernelTable& table) {
    const int64_t most = std::min(rows * op.top_k, most_grouped(op, rows, table));
    return even(op, most, table) ? most * row_stride(bytes_of_row(table, *op.gate_up, op.x_dtype)) : 0;
}

Rows copy_together(const Plan& p, const Group& group, const Rows& x, int64_t bytes, uint8_t* into) {
    const Rows rows{into, row_stride(bytes)};
    for (int64_t i = 0; i < group.pairs; i++) {
        if (i + 1 < group.pairs)  // a row's lines are asked for all at once
            for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(x.at(p.token[group.first_pair + i + 1]) + b);
        memcpy(into + i * rows.stride_bytes, x.at(p.token[group.first_pair + i]), static_cast<size_t>(bytes));
    }
    return rows;
}

void gate_and_up(const MoeOp& op, int64_t rows, const Plan& p, const Rows& x, const uint8_t* down, Region& region) {
    const PackedWeight& w = *op.gate_up;
    const int64_t panels = panels_of(w), width = w.outputs / 2, items = *p.num_groups * panels;
    const int64_t bytes = bytes_of_row(region.table, w, op.x_dtype);
    uint8_t* own = region.local + most_plain_bytes(op, rows, region.table);
    const Group* copied = nullptr;
    Rows together{};
    region.team.walk(region.thread, items, [&](int64_t item, int64_t after) {
        const Group& group = p.groups[item / panels];
        const int64_t e = group.expert, j = item % panels, begin = group.first_pair;
        const bool copies = even(op, group.pairs, region.table);
        if (copies && copied != &group) {
            together = copy_together(p, group, x, bytes, own);
            copied = &group;
        }
        const uint8_t* next = after < items ? panel_at(w, p.groups[after / panels].expert, after % panels) : down;
        const int64_t column = j * (kPanel / 2), valid = width - column < kPanel / 2 ? width - column : kPanel / 2;
        const float* bias = op.bias_gate_up ? op.bias_gate_up + e * w.outputs + column : nullptr;
        multiply(region, w, panel_at(w, e, j), next, group.pairs,
                 [&](int64_t i) { return copies ? together.at(i) : x.at(p.token[begin + i]); },
                 [&](int64_t done, int64_t count, float* values) {
            for (int64_t r = 0; r < count; r++) {
                float *gate = values + r * kPanel, *up = gate + kPanel / 2;
                if (bias) {
                    region.table.add_scaled(gate, bias, 1.0f, RP_DTYPE_F32, valid, gate);
                    region.table.add_scaled(up, bias + width, 1.0f, RP_DTYPE_F32, valid, up);
                }
                void* h = offset(p.h, (begin + done + r) * p.h_stride + column, op.x_dtype);
                region.table.glu(gate, up, kPanel / 2, op.activation, op.alpha, op.limit, op.x_dtype, h);
            }
        });
    });
}

// First pair of [begin, end) whose token is at least `token`.
int64_t pair_of_token(const Plan& p, int64_t begin, int64_t end, int64_t token) {
    while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (p.token[middle] < token) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

void down_and_combine(const MoeOp& op, int64_t rows, const Plan& p, const Rows& h, Region& region) {
    const PackedWeight& w = *op.down;
    const int64_t panels = panels_of(w), hits = *p.num_hit;
    const Cut c = cut(rows, panels, region.team.size());
    const int64_t items = c.runs * c.chunks, stride = c.run * kPanel;
    float* sums = reinterpret_cast<float*>(region.local + most_plain_bytes(op, rows, region.table));  // [c.tokens, stride]
    region.team.walk(region.thread, items, [&](int64_t item, int64_t after) {
        const int64_t j0 = item / c.chunks * c.run, j1 = std::min(j0 + c.run, panels);
        const int64_t t0 = item % c.chunks * c.tokens, t1 = std::min(t0 + c.tokens, rows);
        memset(sums, 0, static_cast<size_t>((t1 - t0) * stride) * 4);
        for (int64_t i = 0; i < hits; i++) {
            const int64_t e = p.hit[i];
            const int64_t begin = pair_of_token(p, p.first[e], p.first[e + 1], t0);
            const int64_t n = pair_of_token(p, begin, p.first[e + 1], t1) - begin;
            if (n == 0) continue;
            const uint8_t* then = i + 1 < hits  ? panel_at(w, p.hit[i + 1], j0)
                                  : after < items ? panel_at(w, p.hit[0], after / c.chunks * c.run)
                                                  : region.after;
            for (int64_t j = j0; j < j1; j++) {
                const int64_t column = j * kPanel, width = std::min<int64_t>(w.outputs - column, kPanel);
                const float* bias = op.bias_down ? op.bias_down + e * w.outputs + column : nullptr;
                multiply(region, w, panel_at(w, e, j), j + 1 < j1 ? panel_at(w, e, j + 1) : then, n,
                         [&](int64_t r) { return h.at(begin + r); }, [&](int64_t done, int64_t count, float* values) {
                    for (int64_t r = 0; r < count; r++) {
                        const int64_t pair = begin + done + r;
                        float* sum = sums + (p.token[pair] - t0) * stride + (j - j0) * kPanel;
                        region.table.axpy(values + r * kPanel, bias, p.weight[pair], width, sum);
                    }
                });
            }
        }
        const int64_t width = std::min(w.outputs - j0 * kPanel, (j1 - j0) * kPanel);
        for (int64_t t = t0; t < t1; t++)
            region.table.narrow(sums + (t - t0) * stride, op.y_dtype, width,
                                offset(op.y, t * op.y_stride + j0 * kPanel, op.y_dtype));
    });
}

Workspace workspace(const void* raw, int64_t rows, int threads) {
    const MoeOp& op = *static_cast<const MoeOp*>(raw);
    int64_t used = 0;
    plan(op, rows, nullptr, kernels(), &used);
    const Cut c = cut(rows > 0 ? rows : 1, panels_of(*op.down), threads);
    return {used, most_plain_bytes(op, rows, kernels()) + std::max(group_bytes(op, rows, kernels()), c.tokens * c.run * kPanel * 4)};
}

void body(const void* raw, int64_t rows, Region& region) {
    const MoeOp& op = *static_cast<const MoeOp*>(raw);
    const Plan p = plan(op, rows, region.shared, region.table, nullptr);
    if (region.thread == 0) sort_pairs(op, rows, p, region.error);
    const Rows x = prepare_rows(region, *op.gate_up, op.x, op.x_dtype, op.x_stride, rows, p.x_rows);
    region.team.barrier();
    if (*p.num_hit == 0) return;
    const uint8_t* down = first_down(op, rows, p, region);
    Wanted meanwhile{down, down + kWantedBytes};
    gate_and_up(op, rows, p, x, down, region);
    region.team.barrier(&meanwhile);
    const Rows h = prepare_rows(region, *op.down, p.h, op.x_dtype, p.h_stride, rows * op.top_k, p.h_rows);
    if (p.h_bytes) region.team.barrier(&meanwhile);
    down_and_combine(op, rows, p, h, region);
}

}  // namespace

extern const Operator kMoe{workspace, body};

}  // namespace rp
