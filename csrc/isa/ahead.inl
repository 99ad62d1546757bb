// Fetching ahead of a tile, evenly over its steps: asked for all at once, lines would stop it until memory answers.
//
// A tile whose panel nobody has fetched (few rows: memory binds) fetches what it reads itself some steps later and, near the
// panel's end, the beginning of the next one. It asks for its own columns only, so that a panel read in two passes comes
// from memory in two even halves. Others (many rows: products bind) fetch their share of panels to come (ops/ahead.h).
//
// All are fetched into the first level, though those of a next panel leave it again: a processor whose queues are full drops
// prefetches (in a loop of nothing else on Zen 5, half of those to the second level and a third of these).

constexpr int64_t kAheadBytes = 8192;  // 400 ns at a thread's 20 GB/s: a few times what memory takes to answer

// `w` is the step (or the scales of a group) that the tile reads now, in a pass over V vectors of outputs (and as many of the
// step's lines; three are one pass) from `column` on.
template <int V> class Follow {
public:
    Follow(const Tile& t, int column) : reads_scales_(column == 0) {
        constexpr int kPasses = kPanel / (16 * V);
        const int64_t unit = t.grouped ? t.panel_bytes * t.group_steps / t.steps : 64 * V * kPasses;
        const int64_t rounded = (kAheadBytes + unit - 1) / unit * unit;
        const int64_t distance = rounded < t.panel_bytes ? rounded : t.panel_bytes;
        offset_ = distance + column * 4;
        last_ = t.panel + t.panel_bytes - distance;
        to_next_ = t.panel_next - (t.panel + t.panel_bytes);
    }
    void step(const uint8_t* w) {
        cross(w);
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) __builtin_prefetch(w + offset_ + 64 * i, 0, 3);  // into the first level: it is read very soon
    }
    void scales(const uint8_t* w, int64_t bytes) {
        cross(w);
        for (int64_t i = 0; reads_scales_ && i < bytes; i += 64) __builtin_prefetch(w + offset_ + i, 0, 3);
    }

private:
    void cross(const uint8_t* w) {
        if (w < last_) return;
        offset_ += to_next_;
        last_ = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
    }

    const uint8_t* last_;
    int64_t offset_, to_next_;
    bool reads_scales_;
};

// A pass over all outputs fetches one range of the share after the other; of two or more passes, each is within one.
template <int V> class Lead {
    static constexpr int kPasses = kPanel / (16 * V), kParts = kPasses == 1 ? 1 : kPasses / 2;

public:
    Lead(const Tile& t, int column) {
        const int pass = column / (16 * V), half = pass / kParts;
        at_ = t.share.at[half] + t.share.bytes[half] * (pass % kParts) / kParts;
        pitch_ = ((kPasses == 1 ? t.share.bytes[0] + t.share.bytes[1] : t.share.bytes[half]) + kParts * t.steps - 1) / (kParts * t.steps);
        end_ = t.share.at[0] + t.share.bytes[0];
        then_ = t.share.at[1];
    }
    // Some lines are asked for twice, which costs less than a branch that goes either way.
    void step(const uint8_t*) {
        __builtin_prefetch(at_, 0, 3);
        if (pitch_ > 64) __builtin_prefetch(at_ + 64, 0, 3);
        at_ += pitch_;
        if (kPasses > 1) return;
        if (pitch_ > 128) {
            __builtin_prefetch(at_ - 64, 0, 3);
            __builtin_prefetch(at_ - 128, 0, 3);
        }
        if (at_ < end_) return;
        at_ = then_;
        end_ = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
    }
    void scales(const uint8_t*, int64_t) {}

private:
    const uint8_t *at_, *end_, *then_;
    int64_t pitch_;
};

// use(ahead), for the pass over V vectors of outputs from `column` on.
template <int V, class Use> inline void fetching(const Tile& t, int column, Use&& use) {
    if (t.follows) use(Follow<V>(t, column));
    else use(Lead<V>(t, column));
}
