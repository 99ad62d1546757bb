// Attention over a paged cache: grouped queries, or MLA's absorbed queries over latents.
//
// All query heads of a KV head are rows of one tile, so keys and values are read once for them. Keys are visited in spans
// and summed in parts counted from position 0, with weights relative to one score per row inside a part: a row's arithmetic
// depends on its own position and keys alone, not on the rows that share its tile, on the batch, or on who computes which part.
#include <utility>

#include "attend_plan.h"

namespace rp {
namespace {

constexpr int64_t kMostSubs = 16, kMaxTile = 8;
constexpr float kHidden = -3.0e38f;

// What all units of a call share.
struct Shape {
    KvLayout layout;
    const AttendKernels& kernels;
    int64_t group, span, element, expanded_bytes, turned_bytes;

    Shape(const AttentionOp& op, const KernelTable& t)
        : layout(op), kernels(attend_kernels(t, layout, op.dtype)),
          group(op.heads / op.kv_heads), span(layout.key_dim <= 128 ? 256 : 128), element(layout.wide ? 4 : 2),
          expanded_bytes(layout.coded ? 2 * (layout.sub_bytes - layout.scale_bytes) : 0),
          turned_bytes(layout.latent ? layout.v_pad * kSub * element : 0) {}

    // Floats of one row's sums.
    int64_t row_floats() const { return layout.v_pad + 2 * kSub; }
};

// Sums of rows over some keys, relative to exp(max scale): of weights in 16 lanes, of weighted values in v_pad channels.
struct Sums {
    float *acc, *lanes, *max;

    static Sums at(const Shape& shape, int64_t rows, float* base) {
        return {base, base + rows * shape.layout.v_pad, base + rows * (shape.layout.v_pad + kSub)};
    }
    void clear(const Shape& shape, int64_t rows) const {
        memset(acc, 0, static_cast<size_t>(rows * (shape.layout.v_pad + kSub)) * 4);
        for (int64_t r = 0; r < rows; r++) max[r] = kHidden;
    }
    void merge(const Shape& shape, const Sums& from, int64_t rows, float scale, const KernelTable& t) const {
        const int64_t n = shape.layout.v_pad;
        for (int64_t r = 0; r < rows; r++)
            t.merge(acc + r * n, lanes + r * kSub, max + r, from.acc + r * n, from.lanes + r * kSub, from.max[r], scale, n);
    }
};

struct Scratch {
    const uint8_t **q, **rotary;  // rows of the unit: queries in the type of the tiles, a latent's rotary part,
    int64_t* position;            // and their places in the sequence
    uint8_t *widened, *expanded, *turned;
    float *part, *total, *scores, *rotary_scores, *key_scales, *value_scales;
    uint32_t* weights;
};

Scratch scratch(const AttentionOp& op, const Shape& shape, uint8_t* base, int64_t* used) {
    const int64_t rows = rows_per_chunk(op), subs = shape.span / kSub;
    Carver carve(base);
    Scratch s{carve.take<const uint8_t*>(rows), carve.take<const uint8_t*>(rows), carve.take<int64_t>(rows),
              carve.take<uint8_t>(rows * op.key_dim * 4), carve.take<uint8_t>(subs * shape.expanded_bytes),
              carve.take<uint8_t>(subs * shape.turned_bytes), carve.take<float>(rows * shape.row_floats()),
              carve.take<float>(rows * shape.row_floats()), carve.take<float>(kMaxTile * shape.span),
              carve.take<float>(kMaxTile * shape.span), carve.take<float>(shape.span), carve.take<float>(shape.span),
              carve.take<uint32_t>(kMaxTile * shape.span / 2)};
    if (used) *used = carve.used;
    return s;
}

// ---------------------------------------------------------------- one unit

// Sub-blocks of keys [first, last), where they lie in the cache.
struct Span {
    int64_t first, last;
    const uint8_t* subs[kMostSubs];
};

Span span_at(const AttentionOp& op, const Shape& shape, const Unit& unit, int64_t first) {
    const int64_t stop = (first / shape.span + 1) * shape.span;
    Span span{first, stop < unit.end ? stop : unit.end, {}};
    const int64_t* table = op.block_tables + unit.chunk->seq * op.table_stride + first / op.block_size;
    const int64_t subs_per_block = op.block_size / kSub;
    int64_t at = first % op.block_size / kSub;
    for (int64_t i = 0; i < shape.span / kSub; i++) {
        if (first + i * kSub >= span.last) { span.subs[i] = span.subs[i - 1]; continue; }  // only ever prefetched
        span.subs[i] = op.cache + *table * op.block_bytes + unit.head * shape.layout.head_bytes + at * shape.layout.sub_bytes;
        if (++at == subs_per_block) { at = 0; table++; }
    }
    return span;
}

// A span as the tiles read it: in place, or expanded from codes, values turned from latents.
struct Operands {
    const uint8_t *keys[kMostSubs], *values[kMostSubs], *rotary[kMostSubs];
};

Operands operands_of(const Shape& shape, const Span& span, const Span* next, const Scratch& s, const KernelTable& t, int32_t format) {
    const KvLayout& layout = shape.layout;
    Operands o;
    for (int64_t i = 0; i < ceil_div(span.last - span.first, kSub); i++) {
        o.keys[i] = span.subs[i];
        if (layout.coded) {
            uint8_t* wide = s.expanded + i * shape.expanded_bytes;
            for (int64_t line = 0; next && line < layout.scale_bytes; line += 64) __builtin_prefetch(next->subs[i] + line);
            memcpy(s.key_scales + i * kSub, span.subs[i], kSub * 4);
            memcpy(s.value_scales + i * kSub, span.subs[i] + kSub * 4, kSub * 4);
            t.expand(span.subs[i] + layout.scale_bytes, layout.sub_bytes - layout.scale_bytes, code_table(format),
                     next ? next->subs[i] + layout.scale_bytes : nullptr, reinterpret_cast<uint16_t*>(wide));
            o.keys[i] = wide;
        }
        o.values[i] = o.keys[i] + (layout.coded ? 2 : 1) * layout.key_bytes;
        if (layout.latent) {
            uint8_t* turned = s.turned + i * shape.turned_bytes;
            shape.kernels.turn(o.keys[i], layout.v_dim, turned);
            o.values[i] = turned;
            o.rotary[i] = o.keys[i] + layout.v_dim * kSub * shape.element;
        }
    }
    return o;
}

// The unit's rows: where they stand, and their queries in the type of the tiles. Lines of queries and of results are asked
// for all at once: tiles would wait for them row by row.
void prepare_rows(const AttentionOp& op, const Shape& shape, const Unit& unit, const Scratch& s, const KernelTable& t) {
    const int64_t rest = op.rope_dim, width = op.key_dim - rest, element = op.dtype == RP_DTYPE_F32 ? 4 : 2;
    const bool in_place = op.dtype == shape.kernels.q_dtype;
    int64_t token = unit.chunk->first / shape.group, head = unit.chunk->first % shape.group;
    for (int64_t r = 0; r < unit.chunk->rows; r++) {
        const int64_t row = unit.chunk->token + token, of = unit.head * shape.group + head;
        s.position[r] = unit.chunk->position + token;
        s.q[r] = offset(op.q, row * op.q_stride + of * op.q_head_stride, op.dtype);
        s.rotary[r] = rest ? offset(op.q_rope, row * op.q_rope_stride + of * rest, op.dtype) : nullptr;
        const uint8_t* y = offset(op.y, row * op.y_stride + of * op.v_dim, op.dtype);
        for (int64_t byte = 0; byte < width * element; byte += 64) __builtin_prefetch(s.q[r] + byte);
        for (int64_t byte = 0; byte < op.v_dim * element; byte += 64) __builtin_prefetch(y + byte, 1, 2);
        if (!in_place || (rest && !shape.layout.coded)) {  // one row of keys, one row of the query
            uint8_t* to = s.widened + r * op.key_dim * 4;
            const int64_t size = shape.kernels.q_dtype == RP_DTYPE_F32 ? 4 : 2;
            const auto copy = [&](const void* from, int64_t n, uint8_t* into) {
                if (in_place) memcpy(into, from, static_cast<size_t>(n * size));
                else t.widen(from, op.dtype, n, reinterpret_cast<float*>(into));
            };
            copy(s.q[r], width, to);
            if (rest) copy(s.rotary[r], rest, to + width * size);
            s.q[r] = to;
            s.rotary[r] = to + width * size;
        }
        if (++head == shape.group) { head = 0; token++; }
    }
}

// What all tiles of a span share.
AttendTile tile_of(const AttentionOp& op, const Shape& shape, const Scratch& s) {
    AttendTile tile{};
    tile.scores = s.scores;
    tile.weights = s.weights;
    tile.score_stride = shape.span;
    tile.v_dim = shape.layout.v_pad;
    tile.key_dim = op.key_dim;
    tile.scale = op.scale;
    if (shape.layout.coded && shape.layout.latent) {  // two scales a token, so two sums
        tile.key_dim = op.v_dim;
        tile.rotary = s.rotary_scores;
    }
    return tile;
}

struct TileBounds { int64_t row, rows, from, to; };  // rows of the chunk, keys of the sequence

void attend_tile(const AttentionOp& op, const Shape& shape, AttendTile tile, const Span& span, const Operands& o,
                 const Span* next, const Scratch& s, const Sums& sums, const TileBounds& b) {
    const KvLayout& layout = shape.layout;
    const int64_t sub = (b.from - span.first) / kSub;
    int64_t begin[kMaxTile], end[kMaxTile];
    for (int64_t r = 0; r < b.rows; r++) {
        const int64_t position = s.position[b.row + r], oldest = oldest_key(op, position);
        begin[r] = oldest > b.from ? oldest - b.from : 0;
        end[r] = (position + 1 < b.to ? position + 1 : b.to) - b.from;
    }
    tile.begin = begin;
    tile.end = end;
    tile.rows = static_cast<int32_t>(b.rows);
    tile.valid = b.to - b.from;
    tile.sub_blocks = ceil_div(tile.valid, kSub);
    tile.q = s.q + b.row;
    tile.keys = o.keys + sub;
    tile.values = o.values + sub;
    tile.out = sums.acc + b.row * layout.v_pad;
    tile.sums = sums.lanes + b.row * kSub;
    tile.max = sums.max + b.row;
    if (layout.coded) {  // a latent's values are its keys, so their scales are too
        tile.key_scales = s.key_scales + sub * kSub;
        tile.value_scales = (layout.latent ? s.key_scales : s.value_scales) + sub * kSub;
    }
    if (tile.rotary) {
        tile.rotary_scales = s.value_scales + sub * kSub;
        AttendTile rest = tile;
        rest.q = s.rotary + b.row;
        rest.keys = o.rotary + sub;
        rest.key_dim = op.key_dim - op.v_dim;
        rest.scores = s.rotary_scores;
        shape.kernels.scores(rest);
    }
    const bool in_place = !layout.coded && b.row == 0;  // codes were fetched ahead as they were expanded
    const uint8_t* const* wanted = next ? next->subs + sub : nullptr;
    if (in_place) tile.prefetch = layout.latent ? wanted : tile.values;
    shape.kernels.weigh(tile);
    tile.prefetch = in_place && !layout.latent ? wanted : nullptr;
    shape.kernels.values(tile);
}

void attend_span(const AttentionOp& op, const Shape& shape, const Unit& unit, const Span& span, const Span* next,
                 const Scratch& s, const Sums& sums, const KernelTable& t) {
    const Operands o = operands_of(shape, span, next, s, t, op.format);
    const AttendTile tile = tile_of(op, shape, s);
    const int64_t rows = unit.chunk->rows, tiles = ceil_div(rows, shape.kernels.rows);
    for (int64_t i = 0, row = 0; i < tiles; i++) {
        const int64_t count = (rows - row) / (tiles - i), newest = s.position[row + count - 1];
        const int64_t oldest = oldest_key(op, s.position[row]) / kSub * kSub;
        const TileBounds b{row, count, oldest > span.first ? oldest : span.first, newest + 1 < span.last ? newest + 1 : span.last};
        if (b.from < b.to) attend_tile(op, shape, tile, span, o, next, s, sums, b);
        row += count;
    }
}

// A sink is a key with this logit and no value.
void start_with_sinks(const AttentionOp& op, const Shape& shape, const Unit& unit, const Sums& sums) {
    sums.clear(shape, unit.chunk->rows);
    for (int64_t r = 0; r < unit.chunk->rows; r++) {
        sums.max[r] = op.sinks[unit.head * shape.group + (unit.chunk->first + r) % shape.group] / op.scale;
        sums.lanes[r * kSub] = 1.0f;
    }
}

void finish(const AttentionOp& op, const Shape& shape, const Unit& unit, const Sums& sums, const KernelTable& t) {
    int64_t token = unit.chunk->token + unit.chunk->first / shape.group, head = unit.chunk->first % shape.group;
    for (int64_t r = 0; r < unit.chunk->rows; r++) {
        uint8_t* y = offset(op.y, token * op.y_stride + (unit.head * shape.group + head) * op.v_dim, op.dtype);
        t.divide(sums.acc + r * shape.layout.v_pad, sums.lanes + r * kSub, op.v_dim, op.dtype, y);
        if (++head == shape.group) { head = 0; token++; }
    }
}

// Parts are summed from scratch and merged in order, here or, when they are shared out, by `merge_parts`.
void attend_unit(const AttentionOp& op, const Shape& shape, const AttendPlan& plan, const Unit& unit, const Unit* after,
                 const Scratch& s, const KernelTable& t, float* partials) {
    const int64_t rows = unit.chunk->rows;
    Sums part = Sums::at(shape, rows, plan.split ? partials + unit.partial * shape.row_floats() : s.part);
    Sums total = Sums::at(shape, rows, s.total);
    bool begun = !plan.split && op.sinks;
    if (begun) start_with_sinks(op, shape, unit, total);
    prepare_rows(op, shape, unit, s, t);
    part.clear(shape, rows);
    Span span = span_at(op, shape, unit, unit.begin), next;
    for (;;) {
        const bool last = span.last == unit.end;
        if (!last) next = span_at(op, shape, unit, span.last);
        else if (after) next = span_at(op, shape, *after, after->begin);
        attend_span(op, shape, unit, span, last && !after ? nullptr : &next, s, part, t);
        if (!plan.split && (last || span.last % kPart == 0)) {
            if (begun) total.merge(shape, part, rows, op.scale, t);
            else std::swap(total, part);
            begun = true;
            if (!last) part.clear(shape, rows);
        }
        if (last) break;
        span = next;
    }
    if (!plan.split) finish(op, shape, unit, total, t);
}

// All rows of one KV head of a chunk.
void merge_parts(const AttentionOp& op, const Shape& shape, const Chunk& chunk, int64_t head, const Scratch& s,
                 const KernelTable& t, float* partials) {
    const Unit unit{&chunk, head, chunk.begin, chunk.end, 0};
    const auto part = [&](int64_t p) {
        return Sums::at(shape, chunk.rows, partials + (chunk.partials + (p * op.kv_heads + head) * chunk.rows) * shape.row_floats());
    };
    const Sums total = op.sinks ? Sums::at(shape, chunk.rows, s.total) : part(0);
    if (op.sinks) start_with_sinks(op, shape, unit, total);
    for (int64_t p = op.sinks ? 0 : 1; p < chunk.parts(); p++) total.merge(shape, part(p), chunk.rows, op.scale, t);
    finish(op, shape, unit, total, t);
}

// ---------------------------------------------------------------- the call

Workspace workspace(const void* raw, int64_t rows, int threads) {
    const AttentionOp& op = *static_cast<const AttentionOp*>(raw);
    const Shape shape(op, kernels());
    const AttendPlan plan = plan_attention(op, rows, threads, nullptr);
    int64_t local = 0;
    scratch(op, shape, nullptr, &local);
    const int64_t chunks = round_up((plan.num_chunks + 1) * static_cast<int64_t>(sizeof(Chunk)), 64);
    return {64 + chunks + plan.partials * shape.row_floats() * 4, local};
}

void body(const void* raw, int64_t rows, Region& region) {
    const AttentionOp& op = *static_cast<const AttentionOp*>(raw);
    const Shape shape(op, region.table);
    const Scratch s = scratch(op, shape, region.local, nullptr);
    AttendPlan& shared = *reinterpret_cast<AttendPlan*>(region.shared);
    Chunk* chunks = reinterpret_cast<Chunk*>(region.shared + 64);
    if (region.thread == 0) shared = plan_attention(op, rows, region.team.size(), chunks);
    region.team.barrier();
    const AttendPlan plan = shared;
    const int64_t table_bytes = round_up((plan.num_chunks + 1) * static_cast<int64_t>(sizeof(Chunk)), 64);
    float* partials = reinterpret_cast<float*>(region.shared + 64 + table_bytes);
    region.team.each(plan.num_units, [&](int64_t index, int64_t next) {
        const Unit unit = unit_at(op, plan, chunks, index);
        const Unit after = unit_at(op, plan, chunks, next < plan.num_units ? next : index);
        attend_unit(op, shape, plan, unit, next < plan.num_units ? &after : nullptr, s, region.table, partials);
    });
    if (!plan.split) return;
    region.team.barrier();
    region.team.each(plan.num_chunks * op.kv_heads, [&](int64_t index, int64_t) {
        merge_parts(op, shape, chunks[index / op.kv_heads], index % op.kv_heads, s, region.table, partials);
    });
}

}  // namespace

extern const Operator kAttention{workspace, body};

}  // namespace rp
