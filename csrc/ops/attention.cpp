// Paged attention over K and V kept in the layout of packed weights, so that a query tile is a product with a panel.
//
// A block holds, for each KV head and each 16 tokens, keys [head_dim / 2][16][2] and values [8][v_dim][2] (v_dim rounded
// up to 16). Keys are visited in spans of 512 counted from position 0, with one running maximum per row between spans: a
// row's arithmetic depends on its own position and keys alone, not on the rows that share its tile or on the batch.
#include <cmath>

#include "op.h"

namespace rp {
namespace {

constexpr int64_t kSub = 16, kSpan = 512, kSpanSubs = kSpan / kSub, kRowsPerItem = 96, kMaxTile = 8;
constexpr float kHidden = -3.0e38f;

struct Layout {
    int64_t v_pad, key_bytes, sub_bytes, head_bytes;
    Layout(int64_t head_dim, int64_t v_dim, int64_t block_size)
        : v_pad(round_up(v_dim, kSub)), key_bytes(head_dim * kSub * 2), sub_bytes(key_bytes + v_pad * kSub * 2),
          head_bytes(block_size / kSub * sub_bytes) {}
};

// ---------------------------------------------------------------- writing

Workspace no_workspace(const void*, int64_t, int) { return {0, 0}; }

void write_token(const KvWriteOp& op, const Layout& layout, int64_t row, int64_t head) {
    const int64_t slot = op.slots[row];
    if (slot < 0) return;
    const int64_t token = slot % op.block_size;
    uint8_t* sub = op.cache + slot / op.block_size * op.block_bytes + head * layout.head_bytes + token / kSub * layout.sub_bytes;
    const uint8_t* k = offset(op.k, row * op.k_stride + head * op.head_dim, RP_DTYPE_BF16);
    for (int64_t i = 0; i < op.head_dim / 2; i++) memcpy(sub + (i * kSub + token % kSub) * 4, k + 4 * i, 4);
    const uint16_t* v = reinterpret_cast<const uint16_t*>(offset(op.v, row * op.v_stride + head * op.v_dim, RP_DTYPE_BF16));
    uint16_t* values = reinterpret_cast<uint16_t*>(sub + layout.key_bytes) + token % kSub / 2 * layout.v_pad * 2 + token % 2;
    for (int64_t c = 0; c < op.v_dim; c++) values[2 * c] = v[c];
}

void write_body(const void* raw, int64_t rows, Region& region) {
    const KvWriteOp& op = *static_cast<const KvWriteOp*>(raw);
    const Layout layout(op.head_dim, op.v_dim, op.block_size);
    const int64_t items = rows * op.heads, size = region.team.size();
    for (int64_t i = items * region.thread / size; i < items * (region.thread + 1) / size; i++)
        write_token(op, layout, i / op.heads, i % op.heads);
}

// ---------------------------------------------------------------- reading

// Rows of an item: tokens [first, first + tokens) of one sequence times the query heads of one KV head.
struct Item {
    int64_t seq, head, token, tokens, position;  // position of the first token in its sequence
};

struct Scratch {
    float *acc, *max, *sum, *scores, *q;
    const uint8_t **keys, **values;
};

int64_t heads_per_kv(const AttentionOp& op) { return op.heads / op.kv_heads; }
int64_t tokens_per_item(const AttentionOp& op) {
    const int64_t group = heads_per_kv(op);
    return group >= kRowsPerItem ? 1 : kRowsPerItem / group;
}

Scratch scratch(const AttentionOp& op, uint8_t* base, int64_t* used) {
    const int64_t rows = tokens_per_item(op) * heads_per_kv(op), v_pad = round_up(op.v_dim, kSub);
    Carver carve(base);
    Scratch s{carve.take<float>(rows * v_pad), carve.take<float>(rows), carve.take<float>(rows),
              carve.take<float>(kMaxTile * kSpan), carve.take<float>(kMaxTile * op.head_dim),
              carve.take<const uint8_t*>(kSpanSubs), carve.take<const uint8_t*>(kSpanSubs)};
    if (used) *used = carve.used;
    return s;
}

Workspace workspace(const void* raw, int64_t rows, int) {
    int64_t local = 0;
    scratch(*static_cast<const AttentionOp*>(raw), nullptr, &local);
    return {(rows + 1) * 8, local};
}

// One tile of rows against the keys [from, to) of one span; `from` is a multiple of 16.
void attend_tile(const AttentionOp& op, const Item& item, const Scratch& s, const KernelTable& t, int64_t row0, int64_t rows,
                 int64_t span, int64_t from, int64_t to) {
    const int64_t group = heads_per_kv(op), v_pad = round_up(op.v_dim, kSub), first_sub = (from - span) / kSub;
    const uint16_t* q[kMaxTile];
    for (int64_t r = 0; r < rows; r++) {
        const int64_t token = item.token + (row0 + r) / group, head = item.head * group + (row0 + r) % group;
        q[r] = reinterpret_cast<const uint16_t*>(offset(op.q, token * op.q_stride + head * op.head_dim, RP_DTYPE_BF16));
        if (t.attend_f32) t.widen(q[r], RP_DTYPE_BF16, op.head_dim, s.q + r * op.head_dim);
    }
    AttendTile tile{q, s.keys + first_sub, s.values + first_sub, s.q, s.scores, s.acc + row0 * v_pad, kSpan,
                    ceil_div(to - from, kSub), op.head_dim, v_pad, to - from, static_cast<int32_t>(rows)};
    t.attend_scores(tile);
    const int64_t width = tile.sub_blocks * kSub;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t position = item.position + (row0 + r) / group;
        const int64_t oldest = op.window > 0 && position + 1 > op.window ? position + 1 - op.window : 0;
        const int64_t begin = oldest > from ? oldest - from : 0, end = position + 1 < to ? position + 1 - from : to - from;
        float* scores = s.scores + r * kSpan;
        if (begin >= end) { memset(scores, 0, static_cast<size_t>(width) * 4); continue; }
        t.scale(scores, op.scale, width);
        for (int64_t i = 0; i < begin; i++) scores[i] = kHidden;
        for (int64_t i = end; i < width; i++) scores[i] = kHidden;
        float &max = s.max[row0 + r], &sum = s.sum[row0 + r];
        const float highest = t.max_of(scores, width);
        if (highest > max) {
            const float shrink = std::exp(max - highest);
            sum *= shrink;
            t.scale(s.acc + (row0 + r) * v_pad, shrink, v_pad);
            max = highest;
        }
        sum += t.exp_sum(scores, width, max);
    }
    t.attend_values(tile);
}

void attend_item(const AttentionOp& op, const Layout& layout, const Item& item, const Scratch& s, const KernelTable& t) {
    const int64_t group = heads_per_kv(op), rows = item.tokens * group, v_pad = layout.v_pad;
    memset(s.acc, 0, static_cast<size_t>(rows * v_pad) * 4);
    for (int64_t r = 0; r < rows; r++) {  // a sink is a key with this logit and no value
        s.max[r] = op.sinks ? op.sinks[item.head * group + r % group] : kHidden;
        s.sum[r] = op.sinks ? 1.0f : 0.0f;
    }
    const int64_t* table = op.block_tables + item.seq * op.table_stride;
    auto oldest = [&](int64_t position) { return op.window > 0 && position + 1 > op.window ? position + 1 - op.window : 0; };
    const int64_t begin = oldest(item.position) / kSub * kSub, end = item.position + item.tokens;
    for (int64_t span = begin / kSpan * kSpan; span < end; span += kSpan) {
        const int64_t first = span > begin ? span : begin, last = span + kSpan < end ? span + kSpan : end;
        for (int64_t k = first; k < last; k += kSub) {
            const uint8_t* sub = op.cache + table[k / op.block_size] * op.block_bytes + item.head * layout.head_bytes +
                                 k % op.block_size / kSub * layout.sub_bytes;
            s.keys[(k - span) / kSub] = sub;
            s.values[(k - span) / kSub] = sub + layout.key_bytes;
        }
        const int64_t tiles = ceil_div(rows, t.attend_rows);
        for (int64_t i = 0, row = 0; i < tiles; i++) {
            const int64_t count = (rows - row) / (tiles - i);
            const int64_t top = item.position + row / group, bottom = item.position + (row + count - 1) / group;
            const int64_t old = oldest(top) / kSub * kSub, from = old > first ? old : first;
            const int64_t to = bottom + 1 < last ? bottom + 1 : last;
            if (from < to) attend_tile(op, item, s, t, row, count, span, from, to);
            row += count;
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t token = item.token + r / group, head = item.head * group + r % group;
        t.scale(s.acc + r * v_pad, 1.0f / s.sum[r], v_pad);
        t.narrow(s.acc + r * v_pad, RP_DTYPE_BF16, op.v_dim, offset(op.y, token * op.y_stride + head * op.v_dim, RP_DTYPE_BF16));
    }
}

void body(const void* raw, int64_t rows, Region& region) {
    const AttentionOp& op = *static_cast<const AttentionOp*>(raw);
    const Layout layout(op.head_dim, op.v_dim, op.block_size);
    const Scratch s = scratch(op, region.local, nullptr);
    const int64_t seqs = *op.num_seqs, per_item = tokens_per_item(op);
    int64_t* first_item = reinterpret_cast<int64_t*>(region.shared);  // [B + 1], in items of one KV head
    if (region.thread == 0) {
        first_item[0] = 0;
        for (int64_t b = 0; b < seqs && b < rows; b++)
            first_item[b + 1] = first_item[b] + ceil_div(op.query_starts[b + 1] - op.query_starts[b], per_item);
    }
    region.team.barrier();
    const int64_t chunks = first_item[seqs < rows ? seqs : rows];
    region.team.each(chunks * op.kv_heads, [&](int64_t index, int64_t) {
        const int64_t chunk = chunks - 1 - index / op.kv_heads;  // the longest contexts of a prefill first
        int64_t low = 0, high = seqs;
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (first_item[middle] <= chunk ? low : high) = middle;
        }
        while (first_item[low + 1] <= chunk) low++;
        const int64_t q0 = op.query_starts[low], q1 = op.query_starts[low + 1], t0 = q0 + (chunk - first_item[low]) * per_item;
        const int64_t tokens = q1 - t0 < per_item ? q1 - t0 : per_item;
        const Item item{low, index % op.kv_heads, t0, tokens, op.context_lens[low] - (q1 - t0)};
        attend_item(op, layout, item, s, region.table);
    });
}

}  // namespace

extern const Operator kKvWrite{no_workspace, write_body};
extern const Operator kAttention{workspace, body};

}  // namespace rp
