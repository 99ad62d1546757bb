// Attention over a paged cache: grouped queries, or MLA's absorbed queries over latents.
//
// All query heads of a KV head are rows of one tile, so keys and values are read once for them. Keys are visited in spans
// and summed in parts counted from position 0, with one running maximum per row inside a part: a row's arithmetic depends
// on its own position and keys alone, not on the rows that share its tile, on the batch, or on who computes which part.
#include <cmath>

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
        : layout(op), kernels(layout.wide ? t.attend_f32 : op.dtype == RP_DTYPE_F32 ? t.attend_mixed : t.attend_bf16),
          group(op.heads / op.kv_heads), span(layout.key_dim <= 128 ? 256 : 128), element(layout.wide ? 4 : 2),
          expanded_bytes(layout.coded ? 2 * (layout.sub_bytes - layout.scale_bytes) : 0),
          turned_bytes(layout.latent ? layout.v_pad * kSub * element : 0) {}
};

// Sums of one row over some keys: `sum` and `acc` are relative to exp(max).
struct State {
    float max, sum;
    float* acc;
};

void fold(State& into, const State& from, int64_t n, const KernelTable& t) {
    if (from.sum == 0.0f) return;  // it saw no key
    const float max = into.max > from.max ? into.max : from.max;
    const float keep = std::exp(into.max - max), take = std::exp(from.max - max);
    t.blend(into.acc, keep, from.acc, take, n);
    into.sum = into.sum * keep + from.sum * take;
    into.max = max;
}

struct Scratch {
    uint8_t *q, *expanded, *turned;
    float *total, *total_max, *total_sum, *part, *part_max, *part_sums, *scores, *rotary, *key_scales, *value_scales;
    uint32_t* weights;
};

Scratch scratch(const AttentionOp& op, const Shape& shape, uint8_t* base, int64_t* used) {
    const int64_t rows = rows_per_chunk(op), v_pad = shape.layout.v_pad, subs = shape.span / kSub;
    Carver carve(base);
    Scratch s{carve.take<uint8_t>(rows * op.key_dim * 4), carve.take<uint8_t>(subs * shape.expanded_bytes),
              carve.take<uint8_t>(subs * shape.turned_bytes), carve.take<float>(rows * v_pad), carve.take<float>(rows),
              carve.take<float>(rows), carve.take<float>(rows * v_pad), carve.take<float>(rows), carve.take<float>(rows * kSub),
              carve.take<float>(kMaxTile * shape.span), carve.take<float>(kMaxTile * shape.span),
              carve.take<float>(shape.span), carve.take<float>(shape.span), carve.take<uint32_t>(kMaxTile * shape.span / 2)};
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

// Queries of the unit's rows in the type of the tiles, a latent's rotary part behind the rest.
void prepare_queries(const AttentionOp& op, const Shape& shape, const Unit& unit, const Scratch& s, const KernelTable& t) {
    const int64_t width = op.latent ? op.v_dim : op.key_dim, rest = op.key_dim - width;
    const int64_t size = shape.kernels.q_dtype == RP_DTYPE_F32 ? 4 : 2;
    auto copy = [&](const void* from, int64_t n, uint8_t* to) {
        if (op.dtype == shape.kernels.q_dtype) memcpy(to, from, static_cast<size_t>(n * size));
        else t.widen(from, op.dtype, n, reinterpret_cast<float*>(to));
    };
    for (int64_t r = 0; r < unit.chunk->rows; r++) {
        const int64_t row = unit.chunk->first + r, token = unit.chunk->token + row / shape.group;
        const int64_t head = unit.head * shape.group + row % shape.group;
        uint8_t* to = s.q + r * op.key_dim * size;
        copy(offset(op.q, token * op.q_stride + head * width, op.dtype), width, to);
        if (rest) copy(offset(op.q_rope, token * op.q_rope_stride + head * rest, op.dtype), rest, to + width * size);
    }
}

struct TileBounds { int64_t row, rows, from, to; };  // rows of the chunk, keys of the sequence

void attend_tile(const AttentionOp& op, const Shape& shape, const Unit& unit, const Span& span, const Operands& o,
                 const Span* next, const Scratch& s, const TileBounds& b) {
    const KvLayout& layout = shape.layout;
    const int64_t size = shape.kernels.q_dtype == RP_DTYPE_F32 ? 4 : 2, sub = (b.from - span.first) / kSub;
    const uint8_t *q[kMaxTile], *rotary[kMaxTile];
    int64_t begin[kMaxTile], end[kMaxTile];
    for (int64_t r = 0; r < b.rows; r++) {
        const int64_t position = unit.chunk->position + (unit.chunk->first + b.row + r) / shape.group, oldest = oldest_key(op, position);
        q[r] = s.q + (b.row + r) * op.key_dim * size;
        rotary[r] = q[r] + op.v_dim * size;
        begin[r] = oldest > b.from ? oldest - b.from : 0;
        end[r] = (position + 1 < b.to ? position + 1 : b.to) - b.from;
    }
    const bool in_place = !layout.coded && b.row == 0;  // codes were fetched ahead as they were expanded
    const uint8_t* const* wanted = next ? next->subs + sub : nullptr;
    AttendTile tile{};
    tile.q = q;
    tile.keys = o.keys + sub;
    tile.values = o.values + sub;
    tile.scores = s.scores;
    tile.weights = s.weights;
    tile.out = s.part + b.row * layout.v_pad;
    tile.max = s.part_max + b.row;
    tile.sums = s.part_sums + b.row * kSub;
    tile.begin = begin;
    tile.end = end;
    tile.score_stride = shape.span;
    tile.sub_blocks = ceil_div(b.to - b.from, kSub);
    tile.key_dim = op.key_dim;
    tile.v_dim = layout.v_pad;
    tile.valid = b.to - b.from;
    tile.scale = op.scale;
    tile.rows = static_cast<int32_t>(b.rows);
    if (layout.coded) {  // a latent's values are its keys, so their scales are too
        tile.key_scales = s.key_scales + sub * kSub;
        tile.value_scales = (layout.latent ? s.key_scales : s.value_scales) + sub * kSub;
    }
    if (layout.coded && layout.latent) {  // two scales a token, so two sums
        tile.key_dim = op.v_dim;
        tile.rotary = s.rotary;
        tile.rotary_scales = s.value_scales + sub * kSub;
        AttendTile rest = tile;
        rest.q = rotary;
        rest.keys = o.rotary + sub;
        rest.key_dim = op.key_dim - op.v_dim;
        rest.scores = s.rotary;
        shape.kernels.scores(rest);
    }
    if (in_place) tile.prefetch = layout.latent ? wanted : tile.values;
    shape.kernels.scores(tile);
    shape.kernels.weigh(tile);
    tile.prefetch = in_place && !layout.latent ? wanted : nullptr;
    shape.kernels.values(tile);
}

void attend_span(const AttentionOp& op, const Shape& shape, const Unit& unit, const Span& span, const Span* next,
                 const Scratch& s, const KernelTable& t) {
    const Operands o = operands_of(shape, span, next, s, t, op.format);
    const int64_t rows = unit.chunk->rows, tiles = ceil_div(rows, shape.kernels.rows);
    for (int64_t i = 0, row = 0; i < tiles; i++) {
        const int64_t count = (rows - row) / (tiles - i), first = unit.chunk->first + row;
        const int64_t top = unit.chunk->position + first / shape.group;
        const int64_t bottom = unit.chunk->position + (first + count - 1) / shape.group;
        const int64_t oldest = oldest_key(op, top) / kSub * kSub;
        const TileBounds b{row, count, oldest > span.first ? oldest : span.first, bottom + 1 < span.last ? bottom + 1 : span.last};
        if (b.from < b.to) attend_tile(op, shape, unit, span, o, next, s, b);
        row += count;
    }
}

void clear_part(const Shape& shape, int64_t rows, const Scratch& s) {
    memset(s.part, 0, static_cast<size_t>(rows * shape.layout.v_pad) * 4);
    memset(s.part_sums, 0, static_cast<size_t>(rows * kSub) * 4);
    for (int64_t r = 0; r < rows; r++) s.part_max[r] = kHidden;
}

State part_of(const AttentionOp& op, const Shape& shape, const Scratch& s, const KernelTable& t, int64_t r) {
    return {s.part_max[r] * op.scale, t.sum_of(s.part_sums + r * kSub, RP_DTYPE_F32, kSub), s.part + r * shape.layout.v_pad};
}

// A sink is a key with this logit and no value.
State start(const AttentionOp& op, const Shape& shape, const Unit& unit, int64_t r, float* acc) {
    memset(acc, 0, static_cast<size_t>(shape.layout.v_pad) * 4);
    if (!op.sinks) return {kHidden, 0.0f, acc};
    return {op.sinks[unit.head * shape.group + (unit.chunk->first + r) % shape.group], 1.0f, acc};
}

void finish(const AttentionOp& op, const Shape& shape, const Unit& unit, int64_t r, const State& state, const KernelTable& t) {
    const int64_t row = unit.chunk->first + r, token = unit.chunk->token + row / shape.group;
    const int64_t head = unit.head * shape.group + row % shape.group;
    t.scale(state.acc, 1.0f / state.sum, shape.layout.v_pad);
    t.narrow(state.acc, op.dtype, op.v_dim, offset(op.y, token * op.y_stride + head * op.v_dim, op.dtype));
}

// A stored state: maximum and sum in the first line, then the accumulator.
int64_t state_floats(const Shape& shape) { return shape.layout.v_pad + kSub; }

void attend_unit(const AttentionOp& op, const Shape& shape, const AttendPlan& plan, const Unit& unit, const Unit* after,
                 const Scratch& s, const KernelTable& t, float* partials) {
    const int64_t rows = unit.chunk->rows, v_pad = shape.layout.v_pad;
    prepare_queries(op, shape, unit, s, t);
    for (int64_t r = 0; r < rows && !plan.split; r++) {
        const State total = start(op, shape, unit, r, s.total + r * v_pad);
        s.total_max[r] = total.max;
        s.total_sum[r] = total.sum;
    }
    clear_part(shape, rows, s);
    Span span = span_at(op, shape, unit, unit.begin), next;
    for (;;) {
        const bool last = span.last == unit.end;
        if (!last) next = span_at(op, shape, unit, span.last);
        else if (after) next = span_at(op, shape, *after, after->begin);
        attend_span(op, shape, unit, span, last && !after ? nullptr : &next, s, t);
        if (!plan.split && (last || span.last % kPart == 0)) {
            for (int64_t r = 0; r < rows; r++) {
                State total{s.total_max[r], s.total_sum[r], s.total + r * v_pad};
                fold(total, part_of(op, shape, s, t, r), v_pad, t);
                s.total_max[r] = total.max;
                s.total_sum[r] = total.sum;
            }
            if (!last) clear_part(shape, rows, s);
        }
        if (last) break;
        span = next;
    }
    for (int64_t r = 0; r < rows; r++) {
        if (!plan.split) { finish(op, shape, unit, r, {s.total_max[r], s.total_sum[r], s.total + r * v_pad}, t); continue; }
        const State part = part_of(op, shape, s, t, r);
        float* to = partials + (unit.partial + r) * state_floats(shape);
        to[0] = part.max;
        to[1] = part.sum;
        memcpy(to + kSub, part.acc, static_cast<size_t>(v_pad) * 4);
    }
}

// All rows of one KV head of a chunk: their parts in order.
void fold_parts(const AttentionOp& op, const Shape& shape, const Chunk& chunk, int64_t head, const Scratch& s,
                const KernelTable& t, float* partials) {
    const Unit unit{&chunk, head, chunk.begin, chunk.end, 0};
    for (int64_t r = 0; r < chunk.rows; r++) {
        State total = start(op, shape, unit, r, s.total);
        for (int64_t p = 0; p < chunk.parts(); p++) {
            float* from = partials + (chunk.partials + (p * op.kv_heads + head) * chunk.rows + r) * state_floats(shape);
            fold(total, {from[0], from[1], from + kSub}, shape.layout.v_pad, t);
        }
        finish(op, shape, unit, r, total, t);
    }
}

// ---------------------------------------------------------------- the call

Workspace workspace(const void* raw, int64_t rows, int threads) {
    const AttentionOp& op = *static_cast<const AttentionOp*>(raw);
    const Shape shape(op, kernels());
    const AttendPlan plan = plan_attention(op, rows, threads, nullptr);
    int64_t local = 0;
    scratch(op, shape, nullptr, &local);
    const int64_t chunks = round_up((plan.num_chunks + 1) * static_cast<int64_t>(sizeof(Chunk)), 64);
    return {64 + chunks + plan.partials * state_floats(shape) * 4, local};
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
        fold_parts(op, shape, chunks[index / op.kv_heads], index % op.kv_heads, s, region.table, partials);
    });
}

}  // namespace

extern const Operator kAttention{workspace, body};

}  // namespace rp
