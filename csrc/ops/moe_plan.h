// Who computes what: (token, expert) pairs sorted by expert, and the order in which experts' panels are read.
#pragma once
#include "multiply.h"

namespace rp {

// Rows of one expert that are multiplied together, by first pair and number.
struct Group { int64_t expert, first_pair, pairs; };

// Groups whose panels a thread reads together: one, or one of several tiles and some of few rows, fetched and multiplied under it.
struct Unit { const Group* groups; int64_t count; };

struct Plan {  // pointers into the shared workspace
    uint8_t* x_rows;        // prepared x
    uint8_t* h;             // [M, F padded] in x's dtype
    uint8_t* h_rows;        // prepared h
    int64_t* first;         // [E + 1] first pair of each expert
    int32_t* hit;           // experts that have pairs, ascending
    int32_t* token;         // [M]
    float* weight;          // [M]
    Group *groups, *ordered;  // by expert; unit by unit
    Unit* units;
    int64_t *num_hit, *num_units;
    int64_t h_stride, x_bytes, h_bytes, most_grouped;
};

constexpr int64_t kGroupBytes = 1 << 19;  // of rows copied together: they stay in a second-level cache beside a panel
constexpr int64_t kGroupRows = 24;        // or at least so many

// Pairs of a group: all of an expert, unless any number of them may be copied.
inline int64_t most_grouped(const MoeOp& op, int64_t rows, const KernelTable& table) {
    const FormatKernels& format = kernels_for(table, *op.gate_up);
    if (!format.even_from || format.expands_from) return std::max<int64_t>(rows, 1);
    return std::max(kGroupBytes / row_stride(bytes_of_row(table, *op.gate_up, op.x_dtype)), kGroupRows);
}

inline Plan plan(const MoeOp& op, int64_t rows, uint8_t* base, const KernelTable& table, int64_t* used) {
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
    const int64_t most_groups = experts + pairs / p.most_grouped;
    p.groups = carve.take<Group>(most_groups);
    p.ordered = carve.take<Group>(most_groups);
    p.units = carve.take<Unit>(most_groups);
    p.num_hit = carve.take<int64_t>(1);
    p.num_units = carve.take<int64_t>(1);
    if (used) *used = carve.used;
    return p;
}

// Rows of a group that waits for memory: its only tile meets all outputs at once. None if every panel is made plain first: there is
// room for one.
inline int64_t most_few_rows(const FormatKernels& format) {
    if (format.expands_from == 1) return 0;
    return format.even_from ? format.even_from - 1 : format.max_rows / 2;
}

// Groups in units, both ascending but for those of few rows that a unit takes ahead of their turn. Returns how many units.
inline int64_t make_units(const KernelTable& table, const PackedWeight& w, const Group* groups, int64_t count, Group* ordered, Unit* units) {
    const FormatKernels& format = kernels_for(table, w);
    const int64_t tile = format.max_rows, most_few = most_few_rows(format);
    const auto is_many = [&](int64_t i) { return groups[i].pairs > tile; };
    const auto is_few = [&](int64_t i) { return groups[i].pairs <= most_few; };
    int64_t many = 0, tiles = 0, few = 0, num_units = 0, seen = 0;  // before `seen`, those of few rows have their unit
    for (int64_t i = 0; i < count; i++) {
        if (is_many(i)) many++, tiles += ceil_div(groups[i].pairs, tile);
        else if (is_few(i)) few++;
    }
    Mix mix(many, tiles, few);
    for (int64_t i = 0; i < count; i++) {
        if (is_few(i) && i < seen) continue;
        seen = std::max(seen, i + 1);
        Unit& unit = units[num_units++] = {ordered, 1};
        *ordered++ = groups[i];
        if (is_few(i)) mix.leave_one();
        if (!is_many(i)) continue;
        for (int64_t left = std::min(mix.most(ceil_div(groups[i].pairs, tile)), Ahead::kMost - 1); left > 0 && seen < count; seen++) {
            if (!is_few(seen)) continue;
            *ordered++ = groups[seen];
            unit.count++, left--;
            mix.take_one();
        }
    }
    return num_units;
}

// Counting sort; pairs of one expert stay in token order.
inline void sort_pairs(const MoeOp& op, int64_t rows, const Plan& p, const KernelTable& table, std::atomic<int>& error) {
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
    *p.num_units = make_units(table, *op.gate_up, p.groups, groups, p.ordered, p.units);
    for (int64_t i = 0; i < pairs; i++) {
        const int64_t at = p.first[op.expert_ids[i]]++;
        p.token[at] = static_cast<int32_t>(i / op.top_k);
        p.weight[at] = op.weights[i];
    }
    for (int64_t e = experts; e > 0; e--) p.first[e] = p.first[e - 1];
    p.first[0] = 0;
}

}  // namespace rp
