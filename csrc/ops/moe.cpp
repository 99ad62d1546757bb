// Routed experts of one layer in three phases: sort (token, expert) pairs by expert; gate and up with the activation in
// the epilogue; down with the weighted sum in the epilogue.
//
// In the second an item is a unit's panels at one place: of a group, whose rows every thread that meets it copies together first,
// if the format's tiles want them at one stride, and of those of few rows that are multiplied between its tiles.
//
// In the last phase an item owns some panels' columns of y for a range of tokens and adds the experts in ascending order,
// so a token's sum has one order whatever its batch, nothing is written twice, and no atomics are needed. What is multiplied
// before its turn is held.
#include <algorithm>

#include "moe_plan.h"

namespace rp {
namespace {

// How the last phase is cut into items: for few rows, where memory binds, runs of panels that lie side by side in every
// expert; for many, ranges of tokens.
struct Cut {
    int64_t rows, panels;
    int64_t runs;            // of panels, about even
    int64_t tokens, chunks;  // of an item; how many such ranges
    int64_t longest() const { return ceil_div(panels, runs); }
    int64_t first_panel(int64_t item) const { return panels * (item / chunks) / runs; }
    int64_t first_token(int64_t item) const { return item % chunks * tokens; }
};
constexpr int64_t kSumBytes = 1 << 16;  // of an item with more than one panel, so that sums stay in a second-level cache
constexpr int64_t kRunsPerThread = 2;   // the longer a run, the faster it is read; the more, the better shared

Cut cut(int64_t rows, int64_t panels, int threads) {
    const int64_t room = kSumBytes / (rows * kPanel * 4), share = ceil_div(panels, kRunsPerThread * threads);
    const int64_t run = std::clamp<int64_t>(room, 1, share), runs = std::min(round_up(ceil_div(panels, run), threads), panels);
    const int64_t wanted = ceil_div(8 * threads, runs), possible = ceil_div(rows, 256);
    const int64_t chunks = runs < panels ? 1 : std::min(wanted, possible);
    return {rows, panels, runs, ceil_div(rows, chunks), chunks};
}

// The panel of the last phase that this thread starts with.
const uint8_t* first_down(const MoeOp& op, int64_t rows, const Plan& p, const Region& region) {
    const Cut c = cut(rows, panels_of(*op.down), region.team.size());
    return panel_at(*op.down, p.hit[0], c.first_panel(Team::stretch_start(c.runs * c.chunks, region.thread, region.team.size())));
}

// Of a thread's own workspace, what lies before copied rows, and then before sums.
int64_t most_plain_bytes(const MoeOp& op, int64_t rows, const KernelTable& table) {
    return std::max(plain_bytes(table, *op.gate_up, rows), plain_bytes(table, *op.down, rows));
}

// Whether a group of so many pairs has its rows copied: its tiles want them at one stride.
bool is_copied(const MoeOp& op, int64_t pairs, const KernelTable& table) {
    const int64_t from = kernels_for(table, *op.gate_up).even_from;
    return from && pairs >= from && !expands(table, *op.gate_up, pairs);
}
int64_t group_bytes(const MoeOp& op, int64_t rows, const KernelTable& table) {
    const FormatKernels& format = kernels_for(table, *op.gate_up);
    const int64_t tallest = format.expands_from ? (format.expands_from - 1) * format.max_rows : most_grouped(op, rows, table);
    const int64_t most = std::min(rows * op.top_k, tallest);
    return is_copied(op, most, table) ? most * row_stride(bytes_of_row(table, *op.gate_up, op.x_dtype)) : 0;
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

// One panel's columns of h, for a group whose i-th row is row(i).
template <class Row, class Between = Nothing>
void gate_and_up_panel(const MoeOp& op, const Plan& p, const Group& group, int64_t j, Ahead& ahead, Row&& row, const Region& region,
                       const Between& between = {}) {
    const PackedWeight& w = *op.gate_up;
    const int64_t e = group.expert, width = w.outputs / 2, column = j * (kPanel / 2), valid = std::min<int64_t>(width - column, kPanel / 2);
    const float* bias = op.bias_gate_up ? op.bias_gate_up + e * w.outputs + column : nullptr;
    multiply(region, w, panel_at(w, e, j), ahead, group.pairs, row, [&](int64_t done, int64_t count, float* values) {
        for (int64_t r = 0; r < count; r++) {
            float *gate = values + r * kPanel, *up = gate + kPanel / 2;
            if (bias) {
                region.table.add_scaled(gate, bias, 1.0f, RP_DTYPE_F32, valid, gate);
                region.table.add_scaled(up, bias + width, 1.0f, RP_DTYPE_F32, valid, up);
            }
            void* h = offset(p.h, (group.first_pair + done + r) * p.h_stride + column, op.x_dtype);
            region.table.glu(gate, up, kPanel / 2, op.activation, op.alpha, op.limit, op.x_dtype, h);
        }
    }, {}, between);
}

void gate_and_up(const MoeOp& op, int64_t rows, const Plan& p, const Rows& x, const uint8_t* down, Region& region) {
    const PackedWeight& w = *op.gate_up;
    const int64_t panels = panels_of(w), items = *p.num_units * panels;
    const int64_t bytes = bytes_of_row(region.table, w, op.x_dtype);
    uint8_t* own = region.local + most_plain_bytes(op, rows, region.table);
    const Unit* copied = nullptr;
    Rows together{};
    Ahead ahead, nothing;
    region.team.walk(region.thread, items, [&](int64_t item, int64_t after) {
        const Unit& unit = p.units[item / panels];
        const Group& group = *unit.groups;
        const int64_t j = item % panels;
        const bool copies = is_copied(op, group.pairs, region.table);
        if (copies && copied != &unit) {
            together = copy_together(p, group, x, bytes, own);
            copied = &unit;
        }
        ahead.clear();
        for (int64_t i = 1; i < unit.count; i++) ahead.add(panel_at(w, unit.groups[i].expert, j));
        ahead.add(after < items ? panel_at(w, p.units[after / panels].groups->expert, after % panels) : down);

        const auto row_of = [&](const Group& of) { return [&](int64_t i) { return x.at(p.token[of.first_pair + i]); }; };
        int64_t under = 1;
        const auto multiply_under = [&](int64_t arrived) {
            for (; under < std::min(1 + arrived, unit.count); under++)
                gate_and_up_panel(op, p, unit.groups[under], j, nothing, row_of(unit.groups[under]), region);
        };
        if (copies) gate_and_up_panel(op, p, group, j, ahead, [&](int64_t i) { return together.at(i); }, region, multiply_under);
        else gate_and_up_panel(op, p, group, j, ahead, row_of(group), region, multiply_under);
        multiply_under(unit.count);
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

// What a thread keeps of an item of the last phase.
struct Scratch {
    struct Held { const Group* group; int64_t first; };  // multiplied before its turn, and where its pairs lie in `values`
    float* sums;                                         // [tokens, stride]
    float* values;                                       // [pairs of groups of few rows, stride]
    Held* held;
    Group *parts, *ordered;  // of each expert, the pairs of the item's tokens; by expert; unit by unit
    Unit* units;
    int64_t stride, bytes;

    static Scratch carve(const MoeOp& op, const Cut& c, const KernelTable& table, uint8_t* base) {
        const int64_t experts = op.gate_up->num_matrices, pairs = c.tokens * op.top_k;
        Carver carve(base);
        Scratch s{};
        s.stride = c.longest() * kPanel;
        s.sums = carve.take<float>(c.tokens * s.stride);
        s.values = carve.take<float>(std::min(pairs, experts * most_few_rows(kernels_for(table, *op.down))) * s.stride);
        s.held = carve.take<Held>(experts);
        s.parts = carve.take<Group>(experts);
        s.ordered = carve.take<Group>(experts);
        s.units = carve.take<Unit>(experts);
        s.bytes = carve.used;
        return s;
    }
};

// Returns how many parts.
int64_t find_parts(const Plan& p, int64_t t0, int64_t t1, Group* parts) {
    int64_t count = 0;
    for (int64_t i = 0; i < *p.num_hit; i++) {
        const int64_t e = p.hit[i], begin = pair_of_token(p, p.first[e], p.first[e + 1], t0);
        const int64_t end = pair_of_token(p, begin, p.first[e + 1], t1);
        if (end > begin) parts[count++] = {e, begin, end - begin};
    }
    return count;
}

// An item of the last phase.
class DownItem {
public:
    DownItem(const MoeOp& op, const Plan& p, const Rows& h, const Cut& c, const Scratch& s, const Region& region, int64_t item)
        : op_(op), w_(*op.down), p_(p), h_(h), s_(s), region_(region), j0_(c.first_panel(item)), j1_(c.first_panel(item + c.chunks)),
          t0_(c.first_token(item)), t1_(std::min(t0_ + c.tokens, c.rows)) {}

    // `next` is what the thread reads afterwards.
    void run(Ahead& ahead, const uint8_t* next) {
        memset(s_.sums, 0, static_cast<size_t>((t1_ - t0_) * s_.stride) * 4);
        const int64_t num_units = make_units(region_.table, w_, s_.parts, find_parts(p_, t0_, t1_, s_.parts), s_.ordered, s_.units);
        for (int64_t u = 0; u < num_units; u++) {
            const Unit& unit = s_.units[u];
            const int64_t e = unit.groups->expert;
            const uint8_t* then = u + 1 < num_units ? panel_at(w_, s_.units[u + 1].groups->expert, j0_) : next;
            add_held(e);
            for (int64_t j = j0_; j < j1_; j++) run_panels(unit, j, ahead, j + 1 < j1_ ? panel_at(w_, e, j + 1) : then);
            for (int64_t i = 1; i < unit.count; held_pairs_ += unit.groups[i++].pairs) s_.held[num_held_++] = {unit.groups + i, held_pairs_};
        }
        add_held(w_.num_matrices);
        const int64_t column = j0_ * kPanel, width = std::min(w_.outputs - column, (j1_ - j0_) * kPanel);
        for (int64_t t = t0_; t < t1_; t++)
            region_.table.narrow(s_.sums + (t - t0_) * s_.stride, op_.y_dtype, width, offset(op_.y, t * op_.y_stride + column, op_.y_dtype));
    }

private:
    // A unit's panels at j: the first group's values are added, those of the others held.
    void run_panels(const Unit& unit, int64_t j, Ahead& ahead, const uint8_t* then) {
        ahead.clear();
        for (int64_t i = 1; i < unit.count; i++) ahead.add(panel_at(w_, unit.groups[i].expert, j));
        ahead.add(then);
        int64_t under = 1, first = held_pairs_;
        Ahead nothing;
        const auto multiply_under = [&](int64_t arrived) {
            for (; under < std::min(1 + arrived, unit.count); first += unit.groups[under++].pairs) {
                float* into = held_at(first, j);
                multiply_part(unit.groups[under], j, nothing, [&](int64_t done, int64_t count, const float* values) {
                    for (int64_t r = 0; r < count; r++) memcpy(into + (done + r) * s_.stride, values + r * kPanel, kPanel * 4);
                });
            }
        };
        multiply_part(*unit.groups, j, ahead, [&](int64_t done, int64_t count, const float* values) {
            add(*unit.groups, j, done, count, values, kPanel);
        }, multiply_under);
        multiply_under(unit.count);
    }
    template <class Use, class Between = Nothing>
    void multiply_part(const Group& part, int64_t j, Ahead& ahead, Use&& use, const Between& between = {}) {
        multiply(region_, w_, panel_at(w_, part.expert, j), ahead, part.pairs, [&](int64_t r) { return h_.at(part.first_pair + r); }, use, {},
                 between);
    }
    void add(const Group& part, int64_t j, int64_t done, int64_t count, const float* values, int64_t stride) {
        const int64_t column = j * kPanel, width = std::min<int64_t>(w_.outputs - column, kPanel);
        const float* bias = op_.bias_down ? op_.bias_down + part.expert * w_.outputs + column : nullptr;
        for (int64_t r = 0; r < count; r++) {
            const int64_t pair = part.first_pair + done + r;
            float* sum = s_.sums + (p_.token[pair] - t0_) * s_.stride + (j - j0_) * kPanel;
            region_.table.axpy(values + r * stride, bias, p_.weight[pair], width, sum);
        }
    }
    void add_held(int64_t before_expert) {
        for (; first_held_ < num_held_ && s_.held[first_held_].group->expert < before_expert; first_held_++) {
            const auto& [part, first] = s_.held[first_held_];
            for (int64_t j = j0_; j < j1_; j++) add(*part, j, 0, part->pairs, held_at(first, j), s_.stride);
        }
    }
    float* held_at(int64_t pair, int64_t j) const { return s_.values + pair * s_.stride + (j - j0_) * kPanel; }

    const MoeOp& op_;
    const PackedWeight& w_;
    const Plan& p_;
    const Rows& h_;
    const Scratch& s_;
    const Region& region_;
    const int64_t j0_, j1_, t0_, t1_;
    int64_t first_held_ = 0, num_held_ = 0, held_pairs_ = 0;  // groups held and not added yet; pairs held so far
};

void down_and_combine(const MoeOp& op, int64_t rows, const Plan& p, const Rows& h, Region& region) {
    const PackedWeight& w = *op.down;
    const Cut c = cut(rows, panels_of(w), region.team.size());
    const Scratch s = Scratch::carve(op, c, region.table, region.local + most_plain_bytes(op, rows, region.table));
    const int64_t items = c.runs * c.chunks;
    Ahead ahead;
    region.team.walk(region.thread, items, [&](int64_t item, int64_t after) {
        const uint8_t* last = region.after ? region.after : panel_at(w, p.hit[0], c.first_panel(item));
        DownItem(op, p, h, c, s, region, item).run(ahead, after < items ? panel_at(w, p.hit[0], c.first_panel(after)) : last);
    });
}

Workspace workspace(const void* raw, int64_t rows, int threads) {
    const MoeOp& op = *static_cast<const MoeOp*>(raw);
    int64_t used = 0;
    plan(op, rows, nullptr, kernels(), &used);
    const Cut c = cut(rows > 0 ? rows : 1, panels_of(*op.down), threads);
    const int64_t own = std::max(group_bytes(op, rows, kernels()), Scratch::carve(op, c, kernels(), nullptr).bytes);
    return {used, most_plain_bytes(op, rows, kernels()) + own};
}

void body(const void* raw, int64_t rows, Region& region) {
    const MoeOp& op = *static_cast<const MoeOp*>(raw);
    const Plan p = plan(op, rows, region.shared, region.table, nullptr);
    if (region.thread == 0) sort_pairs(op, rows, p, region.table, region.error);
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
