// From a step's logits to its tokens, each row by its own rules: penalties and biases, temperature, top-k, top-p of the mass
// of the k best, min-p of the best, then the inverse of the cumulative distribution in order of token ids.
//
// A row is one thread's from start to end and its sums have one order, so its token depends on that row alone.
#include <algorithm>
#include <cmath>
#include <functional>

#include "op.h"

namespace rp {
namespace {

constexpr int64_t kChunk = 512;   // tokens whose mass is summed at once: a draw then looks inside one chunk
constexpr double kSteepest = 1e30;  // of 1 / temperature: what is colder is greedy all the same
constexpr int64_t kBlock = 64;

struct Scratch {
    float *row, *weights, *candidates;
    double* sums;
};

Scratch scratch(const SampleOp& op, uint8_t* base, int64_t* used) {
    Carver carve(base);
    Scratch s{carve.take<float>(op.vocab), carve.take<float>(op.vocab), carve.take<float>(op.vocab + 16),
              carve.take<double>(ceil_div(op.vocab, kChunk))};
    if (used) *used = carve.used;
    return s;
}

Workspace workspace(const void* raw, int64_t, int) {
    int64_t used = 0;
    scratch(*static_cast<const SampleOp*>(raw), nullptr, &used);
    return {0, used};
}

int64_t chunk_size(int64_t vocab, int64_t chunk) { return vocab - chunk * kChunk < kChunk ? vocab - chunk * kChunk : kChunk; }

// Repetition divides a positive logit and multiplies a negative one; presence and frequency are for tokens of the output.
// False where a token is not of the vocabulary.
bool edit(const SampleRow& rule, int64_t vocab, float* row) {
    const auto outside = [vocab](int64_t id) { return id < 0 || id >= vocab; };
    if (std::any_of(rule.seen, rule.seen + rule.num_seen, outside)) return false;
    if (std::any_of(rule.added, rule.added + rule.num_added, outside)) return false;
    const double shrink = 1.0 / rule.repetition;
    for (int64_t i = 0; i < rule.num_seen; i++) {
        const double logit = row[rule.seen[i]], count = static_cast<double>(rule.counts[i]);
        const double scaled = logit * (logit > 0 ? shrink : rule.repetition);
        row[rule.seen[i]] = static_cast<float>(scaled - rule.presence * (rule.counts[i] > 0 ? 1.0 : 0.0) - rule.frequency * count);
    }
    for (int64_t i = 0; i < rule.num_added; i++) row[rule.added[i]] += rule.addends[i];
    return true;
}

// weights = exp((row - top) * steep), and the mass up to the end of each chunk; returns all of it.
double weigh(const float* row, int64_t vocab, float top, float steep, const KernelTable& t, const Scratch& s) {
    double total = 0.0;
    for (int64_t c = 0; c * kChunk < vocab; c++) {
        float* weights = s.weights + c * kChunk;
        memcpy(weights, row + c * kChunk, static_cast<size_t>(chunk_size(vocab, c)) * 4);
        s.sums[c] = total += t.exp_sum(weights, chunk_size(vocab, c), top, steep);
    }
    return total;
}

// The smallest weight of the shortest run of best tokens that holds top_p of the mass of the k best. Only tokens near the
// best are sorted, unless they turn out not to be enough.
float floor_of(const SampleRow& rule, int64_t vocab, double whole, const KernelTable& t, const Scratch& s) {
    const bool limited = rule.top_k > 0 && rule.top_k < vocab;
    for (const float near : {0x1p-5f, 0x1p-9f, 0x1p-14f, 0.0f}) {
        int64_t count = t.collect(s.weights, vocab, near, s.candidates);
        float *first = s.candidates, *last = first + count;
        if (limited && count < rule.top_k) continue;
        if (limited) {
            std::nth_element(first, first + rule.top_k - 1, last, std::greater<float>());
            count = rule.top_k;
            if (rule.top_p >= 1.0) return first[count - 1];
        } else if (near > 0.0f) {
            double mass = 0.0;
            for (int64_t i = 0; i < count; i++) mass += first[i];
            if (mass < rule.top_p * whole) continue;
        }
        std::sort(first, first + count, std::greater<float>());
        double mass = 0.0, passed = 0.0;
        for (int64_t i = 0; i < count && limited; i++) mass += first[i];
        const double goal = rule.top_p * (limited ? mass : whole);
        for (int64_t i = 0; i < count; i++) {
            passed += first[i];
            if (passed >= goal) return first[i];
        }
        if (limited || near == 0.0f) return first[count - 1];  // sums in another order may end a rounding below the goal
    }
    return 0.0f;  // not reached: the last bound takes all tokens
}

// The first token whose cumulative mass passes `uniform` of the whole, among weights of at least `floor`.
int64_t draw(int64_t vocab, float floor, double uniform, const Scratch& s) {
    const int64_t chunks = ceil_div(vocab, kChunk);
    const double goal = uniform * s.sums[chunks - 1];
    const int64_t chunk = std::min(std::upper_bound(s.sums, s.sums + chunks, goal) - s.sums, chunks - 1);
    double passed = chunk ? s.sums[chunk - 1] : 0.0;
    int64_t last = chunk * kChunk;
    for (int64_t i = chunk * kChunk; i < chunk * kChunk + chunk_size(vocab, chunk); i++) {
        if (s.weights[i] < floor || s.weights[i] == 0.0f) continue;
        passed += s.weights[i];
        last = i;
        if (passed > goal) return i;
    }
    return last;  // the chunk's own sum was rounded up
}

int64_t choose(const SampleRow& rule, const float* row, int64_t vocab, const KernelTable& t, const Scratch& s) {
    const int64_t best = t.best(row, vocab);
    if (best < 0 || !std::isfinite(row[best])) return -1;
    if (rule.temperature == 0.0) return best;
    const float steep = static_cast<float>(std::min(1.0 / rule.temperature, kSteepest));
    const double whole = weigh(row, vocab, row[best], steep, t, s);
    float floor = static_cast<float>(rule.min_p);  // the best weight is 1
    if ((rule.top_k > 0 && rule.top_k < vocab) || rule.top_p < 1.0) floor = std::max(floor, floor_of(rule, vocab, whole, t, s));
    if (floor > 0.0f) {
        double total = 0.0;
        for (int64_t c = 0; c * kChunk < vocab; c++)
            s.sums[c] = total += t.sum_from(s.weights + c * kChunk, chunk_size(vocab, c), floor);
    }
    return draw(vocab, floor, rule.uniform, s);
}

// Log-probabilities of `token` and of the `num_top` best, best first, equals by id.
void score(const SampleOp& op, const float* row, int64_t r, int64_t token, int64_t num_top, const KernelTable& t, const Scratch& s) {
    const float top = row[t.best(row, op.vocab)];
    const double log_total = std::log(weigh(row, op.vocab, top, 1.0f, t, s));
    float* values = op.logprobs + r * (op.most_top + 1);
    int64_t *ids = op.top_ids + r * op.most_top, count = 0;
    auto logprob = [&](int64_t id) { return static_cast<float>(static_cast<double>(row[id]) - top - log_total); };
    for (int64_t i = 0; i < op.vocab && num_top > 0; i += kBlock) {
        const int64_t end = i + kBlock < op.vocab ? i + kBlock : op.vocab;
        if (count == num_top && t.max_of(row + i, end - i) <= row[ids[count - 1]]) continue;
        for (int64_t id = i; id < end; id++) {
            if (count == num_top && !(row[id] > row[ids[count - 1]])) continue;
            int64_t place = count < num_top ? count++ : count - 1;
            for (; place > 0 && row[id] > row[ids[place - 1]]; place--) ids[place] = ids[place - 1];
            ids[place] = id;
        }
    }
    values[0] = logprob(token);
    for (int64_t i = 0; i < count; i++) values[i + 1] = logprob(ids[i]);
}

void body(const void* raw, int64_t rows, Region& region) {
    const SampleOp& op = *static_cast<const SampleOp*>(raw);
    const Scratch s = scratch(op, region.local, nullptr);
    region.team.each(rows, [&](int64_t r, int64_t) {
        const SampleRow& rule = op.rules[r];
        const float* given = op.logits + r * op.stride;
        const float* row = given;
        if (rule.num_seen || rule.num_added) {
            memcpy(s.row, given, static_cast<size_t>(op.vocab) * 4);
            if (!edit(rule, op.vocab, s.row)) { region.error.store(kBadTokenId); return; }
            row = s.row;
        }
        op.ids[r] = choose(rule, row, op.vocab, region.table, s);
        if (rule.num_top >= 0 && op.ids[r] >= 0) score(op, given, r, op.ids[r], rule.num_top, region.table, s);
    });
}

}  // namespace

extern const Operator kSample{workspace, body};

}  // namespace rp
