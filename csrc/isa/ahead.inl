// Fetching ahead of a tile, evenly over its steps: asked for all at once, lines would stop it until memory answers.
//
// A tile that reads its panel alone (few rows: memory binds) fetches what it reads itself some steps later and, near the
// panel's end, the beginning of the next one. It asks for its own columns only, so that a panel read in two passes comes
// from memory in two even halves. Tiles that take turns at a panel (many rows: products bind) fetch an equal part each of
// the next panel: the first of them alone would wait for memory, and memory for the others.
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
        const uint8_t* next = t.panel_next ? t.panel_next : t.panel;
        offset_ = distance + column * 4;
        last_ = t.panel + t.panel_bytes - distance;
        to_next_ = next - (t.panel + t.panel_bytes);
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

template <int V> class Turn {
public:
    Turn(const Tile& t, int column) {
        constexpr int kPasses = kPanel / (16 * V);
        const int64_t parts = t.turns * kPasses, part = t.turn * kPasses + column / (16 * V);
        at_ = (t.panel_next ? t.panel_next : t.panel) + t.next_bytes * part / parts;
        pitch_ = (t.next_bytes + parts * t.steps - 1) / (parts * t.steps);
    }
    // Two lines a step at most, since there are two turns at least. Some are asked for twice, which costs less than a branch that
    // goes either way.
    void step(const uint8_t*) {
        __builtin_prefetch(at_, 0, 3);
        if (pitch_ > 64) __builtin_prefetch(at_ + 64, 0, 3);
        at_ += pitch_;
    }
    void scales(const uint8_t*, int64_t) {}

private:
    const uint8_t* at_;
    int64_t pitch_;
};

// use(ahead), for the pass over V vectors of outputs from `column` on.
template <int V, class Use> inline void fetching(const Tile& t, int column, Use&& use) {
    if (t.turns == 1) use(Follow<V>(t, column));
    else use(Turn<V>(t, column));
}
