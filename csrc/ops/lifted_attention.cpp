// Latent attention for prompts: the latents of a context are lifted to keys and values of a few heads at a time, in scratch
// memory laid out like a cache, and ordinary attention runs over that.
//
// A key costs `v_dim (nope_dim + out_dim)` products per head to lift and a pair of query and key then `key + out_dim`, where
// absorbed queries meet `2 v_dim + rope_dim`. Lifting is scores of another kind: rows of `w_uk` and `w_uv` are the queries,
// the latents the keys where they lie in the cache. A lifted number does not depend on who lifts it, or beside what.
#include "lifted.h"
#include "kv.h"

namespace rp {
namespace {

constexpr int64_t kLiftTokens = 64, kLiftSubs = kLiftTokens / kSub, kLiftHeads = 4, kMostTileRows = 8;
constexpr int64_t kLiftedBytes = 16 << 20;           // of keys and values at a time: they stay in the last-level cache,
constexpr int64_t kLiftedBytesPerThread = 4 << 20;  // and there are heads enough for all threads

// Lifted keys and values as a cache of one block per sequence, and the call over it.
struct Lifted {
    AttentionOp op;
    KvLayout layout;
    int64_t keys, heads;  // room for so many of each

    static AttentionOp over(const LiftedAttentionOp& from, int64_t seq, int64_t keys, int64_t heads) {
        static constexpr int64_t kOne = 1, kFirstBlock = 0;
        AttentionOp op = from.latents;
        op.query_starts += seq;
        op.context_lens += seq;
        op.prompt_lens += seq;
        op.num_seqs = &kOne;
        op.block_tables = &kFirstBlock;
        op.table_stride = 0;
        op.block_size = keys;
        op.heads = op.kv_heads = heads;
        op.key_dim = from.nope_dim + op.rope_dim;
        op.v_dim = from.out_dim;
        op.format = op.dtype == RP_DTYPE_F32 || op.format == RP_F32 ? RP_F32 : RP_BF16;
        op.latent = 0;
        op.lifted = 1;
        return op;
    }
    Lifted(const LiftedAttentionOp& from, int64_t seq, int64_t room_keys, int64_t room_heads)
        : op(over(from, seq, room_keys, room_heads)), layout(op), keys(room_keys), heads(room_heads) {}

    int64_t bytes() const { return heads * layout.head_bytes; }
    uint8_t* sub(uint8_t* base, int64_t head, int64_t key) const {
        return base + head * layout.head_bytes + key / kSub * layout.sub_bytes;
    }
    // The call for heads [first, first + count), whose keys and values lie at `base`.
    AttentionOp call(const LiftedAttentionOp& from, const uint8_t* base, int64_t first, int64_t count) const {
        AttentionOp part = op;
        part.heads = part.kv_heads = count;
        part.cache = base;
        part.q = offset(from.latents.q, first * op.q_head_stride, op.dtype);
        part.q_rope = offset(from.latents.q_rope, first * op.rope_dim, op.dtype);
        part.y = offset(from.latents.y, first * from.out_dim, op.dtype);
        return part;
    }
};

// Heads of a group, as even as they come, and few enough that their keys and values are `kLiftedBytes`.
int64_t heads_per_group(const LiftedAttentionOp& op, int64_t keys, int threads) {
    const int64_t bytes = Lifted(op, 0, keys, 1).bytes(), most = kLiftedBytes > threads * kLiftedBytesPerThread ? kLiftedBytes : threads * kLiftedBytesPerThread;
    const int64_t heads = op.latents.heads, at_once = most / bytes < 1 ? 1 : most / bytes < heads ? most / bytes : heads;
    return ceil_div(heads, ceil_div(heads, at_once));
}

template <class Use> void each_sequence(const LiftedAttentionOp& op, int64_t rows, int threads, Use&& use) {
    for (int64_t b = 0; b < *op.latents.num_seqs; b++) {
        const Queries queries = queries_of(op.latents, b, rows);
        if (queries.count == 0) continue;
        const int64_t end = queries.position + queries.count, keys = round_up(end, kSub);
        const int64_t window = op.latents.window, oldest = window && queries.position + 1 > window ? queries.position + 1 - window : 0;
        use(Lifted(op, b, keys, heads_per_group(op, keys, threads)), b, oldest / kLiftTokens * kLiftTokens, end);
    }
}

// ---------------------------------------------------------------- lifting

struct Scratch {
    uint8_t *expanded, *weights, *narrow, *turning;
    float *scores, *scales, *rotary_scales;
};

int64_t even(int64_t n) { return n + n % 2; }

Scratch scratch(const LiftedAttentionOp& op, const KvLayout& layout, uint8_t* base, int64_t* used) {
    const int64_t wide = op.nope_dim > op.out_dim ? op.nope_dim : even(op.out_dim), rotary = op.latents.rope_dim * kSub;
    const int64_t most = wide * kLiftTokens > rotary ? wide * kLiftTokens : rotary;
    Carver carve(base);
    Scratch s{carve.take<uint8_t>(kLiftSubs * (layout.coded ? 2 * layout.key_bytes : 0)),
              carve.take<uint8_t>(kMostTileRows * layout.v_dim * 4), carve.take<uint8_t>(most * 2),
              carve.take<uint8_t>(wide * kSub * 4), carve.take<float>(most), carve.take<float>(kLiftTokens),
              carve.take<float>(rotary * kLiftSubs)};
    if (used) *used = carve.used;
    return s;
}

// Latents of up to 64 tokens as the tiles read them.
struct Latents {
    const uint8_t* subs[kLiftSubs];
    int64_t count;  // of sub-blocks
};

Latents latents_at(const AttentionOp& op, const KvLayout& layout, int64_t seq, int64_t first, int64_t end, const Scratch& s,
                   const KernelTable& t) {
    const int64_t left = ceil_div(end - first, kSub);
    Latents latents{{}, left < kLiftSubs ? left : kLiftSubs};
    for (int64_t i = 0; i < latents.count; i++) {
        const int64_t key = first + i * kSub, block = op.block_tables[seq * op.table_stride + key / op.block_size];
        const uint8_t* sub = op.cache + block * op.block_bytes + key % op.block_size / kSub * layout.sub_bytes;
        latents.subs[i] = sub;
        if (!layout.coded) continue;
        uint8_t* wide = s.expanded + i * 2 * layout.key_bytes;
        t.expand(sub + layout.scale_bytes, layout.key_bytes, code_table(op.format), nullptr, reinterpret_cast<uint16_t*>(wide));
        latents.subs[i] = wide;
        memcpy(s.scales + i * kSub, sub, kSub * 4);
        float *each = s.rotary_scales + i * op.rope_dim * kSub, rotary[kSub];
        memcpy(rotary, sub + kSub * 4, sizeof rotary);
        for (int64_t pair = 0; pair < op.rope_dim / 2; pair++)
            for (int64_t token = 0; token < kSub; token++)
                each[(pair * kSub + token) * 2] = each[(pair * kSub + token) * 2 + 1] = rotary[token];
    }
    return latents;
}

// s.scores[r][token] = row r of w . latent of the token, for `rows` rows that are `width` channels long.
void multiply(const LiftedAttentionOp& op, const KvLayout& layout, const AttendKernels& kernels, const Latents& latents,
              const void* w, int64_t rows, const Scratch& s, const KernelTable& t) {
    const bool in_place = op.w_dtype == kernels.q_dtype;
    const uint8_t* q[kMostTileRows];
    AttendTile tile{};
    tile.q = q;
    tile.keys = latents.subs;
    tile.score_stride = kLiftTokens;
    tile.sub_blocks = latents.count;
    tile.key_dim = layout.v_dim;
    const int64_t tiles = ceil_div(rows, kernels.rows);
    for (int64_t i = 0, row = 0; i < tiles; i++, row += tile.rows) {
        tile.rows = static_cast<int32_t>((rows - row) / (tiles - i));
        for (int64_t r = 0; r < tile.rows; r++) {
            q[r] = offset(w, (row + r) * layout.v_dim, op.w_dtype);
            if (in_place) continue;
            float* wide = reinterpret_cast<float*>(s.weights) + r * layout.v_dim;
            t.widen(q[r], op.w_dtype, layout.v_dim, wide);
            q[r] = reinterpret_cast<const uint8_t*>(wide);
        }
        tile.scores = s.scores + row * kLiftTokens;
        kernels.scores(tile);
    }
    if (layout.coded) for (int64_t r = 0; r < rows; r++) t.multiply(s.scores + r * kLiftTokens, s.scales, latents.count * kSub);
}

// s.scores of one sub-block as a sub-block of keys: [channel][16] in float32, [channel / 2][16][2] in bf16 (from s.narrow).
void put_keys(const Lifted& lifted, int64_t sub, int64_t channels, const Scratch& s, uint8_t* out) {
    if (lifted.layout.wide) {
        for (int64_t c = 0; c < channels; c++) memcpy(out + c * kSub * 4, s.scores + c * kLiftTokens + sub * kSub, kSub * 4);
        return;
    }
    for (int64_t c = 0; c < channels; c += 2) {
        uint16_t a[kSub], b[kSub], pairs[2 * kSub];
        memcpy(a, s.narrow + (c * kLiftTokens + sub * kSub) * 2, sizeof a);
        memcpy(b, s.narrow + ((c + 1) * kLiftTokens + sub * kSub) * 2, sizeof b);
        for (int64_t i = 0; i < kSub; i++) { pairs[2 * i] = a[i]; pairs[2 * i + 1] = b[i]; }
        memcpy(out + c * kSub * 2, pairs, sizeof pairs);
    }
}

// The rotary key behind the lifted channels, as the cache has it but for codes.
void put_rotary(const LiftedAttentionOp& op, const KvLayout& from, const Lifted& lifted, const Latents& latents, int64_t sub,
                const Scratch& s, const KernelTable& t, uint8_t* out) {
    const int64_t count = op.latents.rope_dim * kSub;
    const uint8_t* rotary = latents.subs[sub] + from.v_dim * kSub * (from.wide ? 4 : 2);
    if (from.wide == lifted.layout.wide && !from.coded) {
        memcpy(out, rotary, static_cast<size_t>(count * (from.wide ? 4 : 2)));
        return;
    }
    t.widen(rotary, RP_DTYPE_BF16, count, s.scores);  // from pairs of bf16
    if (from.coded) t.multiply(s.scores, s.rotary_scales + sub * count, count);
    if (!lifted.layout.wide) { t.narrow(s.scores, RP_DTYPE_BF16, count, out); return; }
    float* to = reinterpret_cast<float*>(out);
    for (int64_t c = 0; c < op.latents.rope_dim; c++)
        for (int64_t i = 0; i < kSub; i++) to[c * kSub + i] = s.scores[(c / 2 * kSub + i) * 2 + c % 2];
}

// Up to 64 tokens from `first` on, heads [head, head_end) of the model, which are `group` on in the scratch cache.
void lift(const LiftedAttentionOp& op, const KvLayout& from, const Lifted& lifted, int64_t seq, int64_t first, int64_t end,
          int64_t group, int64_t head, int64_t head_end, const Scratch& s, const KernelTable& t, uint8_t* base) {
    const AttendKernels& kernels = attend_kernels(t, from, op.latents.dtype);
    const AttendKernels& into = attend_kernels(t, lifted.layout, op.latents.dtype);
    const Latents latents = latents_at(op.latents, from, seq, first, end, s, t);
    const int64_t element = lifted.layout.wide ? 4 : 2, padded = even(op.out_dim);
    const auto rounded = [&](int64_t rows) {
        if (!lifted.layout.wide) t.narrow(s.scores, RP_DTYPE_BF16, rows * kLiftTokens, s.narrow);
    };
    for (int64_t h = head; h < head_end; h++) {
        multiply(op, from, kernels, latents, offset(op.w_uk, h * op.nope_dim * from.v_dim, op.w_dtype), op.nope_dim, s, t);
        rounded(op.nope_dim);
        for (int64_t i = 0; i < latents.count; i++)
            put_keys(lifted, i, op.nope_dim, s, lifted.sub(base, h - group, first + i * kSub));
        for (int64_t i = 0; i < latents.count; i++)
            put_rotary(op, from, lifted, latents, i, s, t, lifted.sub(base, h - group, first + i * kSub) + op.nope_dim * kSub * element);
        multiply(op, from, kernels, latents, offset(op.w_uv, h * op.out_dim * from.v_dim, op.w_dtype), op.out_dim, s, t);
        if (padded > op.out_dim) memset(s.scores + op.out_dim * kLiftTokens, 0, kLiftTokens * 4);
        rounded(padded);
        for (int64_t i = 0; i < latents.count; i++) {
            put_keys(lifted, i, padded, s, s.turning);
            into.turn(s.turning, op.out_dim, lifted.sub(base, h - group, first + i * kSub) + lifted.layout.key_bytes);
        }
    }
}

// ---------------------------------------------------------------- the call

Workspace workspace(const void* raw, int64_t rows, int threads) {
    const LiftedAttentionOp& op = *static_cast<const LiftedAttentionOp*>(raw);
    Workspace most{0, 0};
    scratch(op, KvLayout(op.latents), nullptr, &most.local_bytes);
    each_sequence(op, rows, threads, [&](const Lifted& lifted, int64_t, int64_t, int64_t) {
        const int64_t bytes = round_up(lifted.bytes(), 4096), all = op.latents.heads;
        for (const int64_t heads : {lifted.heads, all - (all - 1) / lifted.heads * lifted.heads}) {  // of the last group, which may be cut otherwise
            const AttentionOp part = lifted.call(op, nullptr, all - heads, heads);
            const Workspace over = kAttention.workspace(&part, rows, threads);
            if (bytes + over.shared_bytes > most.shared_bytes) most.shared_bytes = bytes + over.shared_bytes;
            if (over.local_bytes > most.local_bytes) most.local_bytes = over.local_bytes;
        }
    });
    return most;
}

void body(const void* raw, int64_t rows, Region& region) {
    const LiftedAttentionOp& op = *static_cast<const LiftedAttentionOp*>(raw);
    const KvLayout from(op.latents);
    const Scratch s = scratch(op, from, region.local, nullptr);
    bool begun = false;
    each_sequence(op, rows, region.team.size(), [&](const Lifted& lifted, int64_t seq, int64_t begin, int64_t end) {
        const int64_t spans = ceil_div(end - begin, kLiftTokens);
        Region over{region.table, region.team, region.thread, region.shared + round_up(lifted.bytes(), 4096), region.local, region.after, region.error};
        for (int64_t group = 0; group < op.latents.heads; group += lifted.heads) {
            const int64_t left = op.latents.heads - group, heads = left < lifted.heads ? left : lifted.heads, runs = ceil_div(heads, kLiftHeads);
            if (begun) region.team.barrier();
            begun = true;
            region.team.each(spans * runs, [&](int64_t item, int64_t) {
                const int64_t first = begin + item / runs * kLiftTokens, run = item % runs;
                lift(op, from, lifted, seq, first, end, group, group + heads * run / runs, group + heads * (run + 1) / runs, s,
                     region.table, region.shared);
            });
            region.team.barrier();
            const AttentionOp part = lifted.call(op, region.shared, group, heads);
            kAttention.body(&part, rows, over);
        }
    });
}

}  // namespace

extern const Operator kLiftedAttention{workspace, body};

}  // namespace rp
