// How one call's attention is cut into units of work. Only scheduling: a part of kPart keys is always summed from scratch and
// parts are always folded in order, so no result shows how parts were shared out.
#pragma once
#include "kv.h"
#include "lifted.h"

namespace rp {

constexpr int64_t kPart = 1024;                    // keys summed relative to one score
constexpr int64_t kMostPartialBytes = 64 << 20;    // beyond, parts are not shared out
constexpr int64_t kUnitsPerThread = 4;

// Rows are (token, query head of one KV head), heads innermost. A chunk is a run of one sequence's rows.
struct Chunk {
    int64_t seq, first, rows;      // rows [first, first + rows) of the sequence
    int64_t token, position;       // its first query: row of the batch, place in its sequence
    int64_t begin, end;            // keys that any of the rows sees; begin is a multiple of kSub
    int64_t first_unit, partials;  // before this chunk: units, and partial states when parts are shared out

    int64_t first_part() const { return begin / kPart; }
    int64_t parts() const { return ceil_div(end, kPart) - first_part(); }
};

// One KV head of a chunk, and the keys [begin, end) of it.
struct Unit {
    const Chunk* chunk;
    int64_t head, begin, end, partial;
};

struct AttendPlan {
    int64_t num_chunks, num_units, partials;
    bool split;  // units are single parts
};

inline int64_t oldest_key(const AttentionOp& op, int64_t position) {
    return op.window > 0 && position + 1 > op.window ? position + 1 - op.window : 0;
}

inline int64_t rows_per_chunk(const AttentionOp& op) { return op.latent ? 32 : 96; }

// `chunks` may be null: then they are only counted.
inline AttendPlan plan_attention(const AttentionOp& op, int64_t tokens, int threads, Chunk* chunks) {
    const int64_t group = op.heads / op.kv_heads, most = rows_per_chunk(op);
    int64_t longest = 0, work = 0, count = 0, states = 0, split_units = 0;
    for (int64_t b = 0; b < *op.num_seqs; b++) {
        const auto [token, queries, position] = queries_of(op, b, tokens);
        const int64_t rows = queries * group;
        for (int64_t first = 0; first < rows; first += most) {
            Chunk chunk{b, first, rows - first < most ? rows - first : most, token, position, 0, 0, split_units, states};
            chunk.begin = oldest_key(op, position + first / group) / kSub * kSub;
            chunk.end = position + (first + chunk.rows - 1) / group + 1;
            const int64_t parts = chunk.parts();
            longest = parts > longest ? parts : longest;
            work += parts * op.kv_heads;
            states += parts * op.kv_heads * chunk.rows;
            split_units += parts * op.kv_heads;
            if (chunks) chunks[count] = chunk;
            count++;
        }
    }
    const int64_t share = work / (kUnitsPerThread * threads), bytes = states * (round_up(op.v_dim, kSub) + 2 * kSub) * 4;
    const bool split = threads > 1 && longest > 1 && longest > share && bytes <= kMostPartialBytes;
    if (chunks && !split)
        for (int64_t i = 0; i < count; i++) chunks[i].first_unit = i * op.kv_heads;
    return {count, split ? split_units : count * op.kv_heads, split ? states : 0, split};
}

inline Unit unit_at(const AttentionOp& op, const AttendPlan& plan, const Chunk* chunks, int64_t index) {
    index = plan.num_units - 1 - index;  // the longest contexts of a prefill first
    int64_t low = 0, high = plan.num_chunks;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (chunks[middle].first_unit <= index ? low : high) = middle;
    }
    const Chunk& chunk = chunks[low];
    const int64_t within = index - chunk.first_unit;
    if (!plan.split) return {&chunk, within, chunk.begin, chunk.end, 0};
    const int64_t part = chunk.first_part() + within / op.kv_heads, from = part * kPart, to = from + kPart;
    return {&chunk, within % op.kv_heads, from > chunk.begin ? from : chunk.begin, to < chunk.end ? to : chunk.end,
            chunk.partials + within * chunk.rows};
}

}  // namespace rp
