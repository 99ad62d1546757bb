// Which experts a token visits and how much each counts. Best first; equal scores go to the lower id.
#include <cmath>

#include "op.h"

namespace rp {
namespace {

constexpr float kNever = -INFINITY;

struct Scratch { float *scores, *choice, *group; };

Scratch scratch(const RouteOp& op, uint8_t* base, int64_t* used) {
    Carver carve(base);
    Scratch s{carve.take<float>(op.num_experts), carve.take<float>(op.num_experts), carve.take<float>(op.num_groups)};
    if (used) *used = carve.used;
    return s;
}

Workspace workspace(const void* raw, int64_t, int) {
    int64_t used = 0;
    scratch(*static_cast<const RouteOp*>(raw), nullptr, &used);
    return {0, used};
}

// Index of the largest value; the first of equals. NaN never wins.
int64_t best(const float* values, int64_t n, const KernelTable& t) {
    int64_t at = t.best(values, n);
    if (at >= 0) return at;
    at = 0;  // there is one
    for (int64_t i = 1; i < n; i++)
        if (values[i] > values[at]) at = i;
    return at;
}

// Only the best `topk_groups` groups keep their choice scores.
void mask_groups(const RouteOp& op, const KernelTable& t, const Scratch& s) {
    const int64_t size = op.num_experts / op.num_groups;
    for (int64_t g = 0; g < op.num_groups; g++) {
        float first = kNever, second = kNever;
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            const float c = s.choice[i];
            if (c > first) { second = first; first = c; }
            else if (c > second) second = c;
        }
        s.group[g] = op.group_top2 && size > 1 ? first + second : first;
    }
    for (int64_t kept = 0; kept < op.topk_groups; kept++) s.group[best(s.group, op.num_groups, t)] = kNever;
    // What is left above -inf was not among the best.
    for (int64_t g = 0; g < op.num_groups; g++)
        if (s.group[g] != kNever)
            for (int64_t i = g * size; i < (g + 1) * size; i++) s.choice[i] = kNever;
}

// The k-th expert is the best not yet taken; its weight is its share of a softmax over the free experts within the jitter of
// it, the distance being relative to the larger of the two logits' sizes.
void sparsemix_row(const RouteOp& op, const KernelTable& t, const Scratch& s, const float* logits, float* weights, int64_t* ids) {
    const int64_t n = op.num_experts;
    memcpy(s.choice, logits, static_cast<size_t>(n) * 4);
    for (int64_t k = 0; k < op.top_k; k++) {
        const int64_t id = best(s.choice, n, t);
        const float top = s.choice[id];
        for (int64_t i = 0; i < n; i++) {
            const float size = std::fabs(logits[i]) > top ? std::fabs(logits[i]) : top;
            s.scores[i] = (top - s.choice[i]) / size > 2 * op.jitter ? kNever : s.choice[i];
        }
        weights[k] = op.scale / t.exp_sum(s.scores, n, top, 1.0f);
        ids[k] = id;
        s.choice[id] = kNever;
    }
}

void route_row(const RouteOp& op, const KernelTable& t, const Scratch& s, const float* logits, float* weights, int64_t* ids) {
    if (op.scores == 3) { sparsemix_row(op, t, s, logits, weights, ids); return; }
    const int64_t n = op.num_experts;
    memcpy(s.scores, logits, static_cast<size_t>(n) * 4);
    if (op.scores == 0) t.scale(s.scores, 1.0f / t.exp_sum(s.scores, n, t.max_of(s.scores, n), 1.0f), n);
    if (op.scores == 1)
        for (int64_t i = 0; i < n; i++) s.scores[i] = 1.0f / (1.0f + std::exp(-s.scores[i]));
    for (int64_t i = 0; i < n; i++) s.choice[i] = s.scores[i] + (op.correction ? op.correction[i] : 0.0f);
    if (op.topk_groups < op.num_groups) mask_groups(op, t, s);
    for (int64_t k = 0; k < op.top_k; k++) {
        ids[k] = best(s.choice, n, t);
        weights[k] = s.scores[ids[k]];
        s.choice[ids[k]] = kNever;
    }
    if (op.scores == 2) t.scale(weights, 1.0f / t.exp_sum(weights, op.top_k, t.max_of(weights, op.top_k), 1.0f), op.top_k);
    float total = 1e-20f;
    for (int64_t k = 0; k < op.top_k; k++) total += weights[k];
    const float factor = (op.normalise ? 1.0f / total : 1.0f) * op.scale;
    if (factor != 1.0f) t.scale(weights, factor, op.top_k);
}

void body(const void* raw, int64_t rows, Region& region) {
    const RouteOp& op = *static_cast<const RouteOp*>(raw);
    const Scratch s = scratch(op, region.local, nullptr);
    const int64_t size = region.team.size(), first = rows * region.thread / size, last = rows * (region.thread + 1) / size;
    for (int64_t i = first; i < last; i++)
        route_row(op, region.table, s, op.logits + i * op.num_experts, op.weights + i * op.top_k, op.expert_ids + i * op.top_k);
}

}  // namespace

extern const Operator kRoute{workspace, body};

}  // namespace rp
