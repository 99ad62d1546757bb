// Fetching ahead of a tile, evenly over its steps: asked for all at once, lines would stop it until memory answers.
//
// A tile that reads its panel alone (few rows: memory binds) fetches what it reads itself some steps later and, near the
// panel's end, the beginning of the next one. It asks for its own columns only, so that a panel read in two passes comes
// from memory in two even halves. Tiles that take turns at a panel (many rows: products bind) fetch a part each of the
// next panel, since the first of them alone would have to wait for this one.

constexpr int64_t kAheadBytes = 8192;  // 400 ns at a thread's 20 GB/s: a few times what memory takes to answer

class Ahead {
public:
    // Pass `pass` of `passes` over the tile's columns.
    Ahead(const Tile& t, int pass, int passes) {
        if (t.turns == 1) follow(t, pass, passes);
        else if (t.panel_next && t.columns == kPanel) take_turn(t, pass, passes);
    }
    int lines() const { return lines_; }  // of 64 bytes, per step
    bool near() const { return near_; }
    void ask() {
        if (near_) {
            if (lines_ == 4) ask_near<4>();
            else if (lines_ == 2) ask_near<2>();
            else ask_near<1>();
        } else {
            if (lines_ == 2) ask_far<2>();
            else if (lines_ == 1) ask_far<1>();
        }
    }
    template <int Lines> void ask_near() {
#pragma GCC unroll 4
        for (int i = 0; i < Lines; i++) __builtin_prefetch(at_ + 64 * i, 0, 3);  // into the first level: it is read very soon
        advance(256);
    }
    template <int Lines> void ask_far() {
#pragma GCC unroll 4
        for (int i = 0; i < Lines; i++) prefetch(at_ + 64 * i);
        at_ += 64 * Lines;
    }
    // A group's scales are part of the panel and of no step.
    void ask_scales(int64_t bytes) {
        if (near_) {
            for (int64_t i = 0; asks_scales_ && i < bytes; i += 64) __builtin_prefetch(at_ + i, 0, 3);
            advance(bytes);
        } else if (lines_) {
            for (owed_ += bytes * lines_ / 4; owed_ >= 64; owed_ -= 64, at_ += 64) prefetch(at_);
        }
    }

private:
    void follow(const Tile& t, int pass, int passes) {
        const int64_t unit = t.grouped ? t.panel_bytes * t.group_steps / t.steps : 256;
        const int64_t distance = (kAheadBytes + unit - 1) / unit * unit;
        near_ = true;
        asks_scales_ = pass == 0;
        lines_ = t.columns / 16 / passes;
        const int64_t column = t.first_column * 4 + pass * lines_ * 64;
        then_ = (t.panel_next ? t.panel_next : t.panel) + column;
        at_ = t.panel + distance + column;
        end_ = t.panel + t.panel_bytes;
        advance(0);
    }
    void take_turn(const Tile& t, int pass, int passes) {
        const int64_t per_tile = t.turns <= 3 ? 2 : 1, all_steps = t.panel_bytes / 256;
        const int64_t lines = per_tile > passes ? per_tile / passes : 1;
        if (pass >= per_tile || (t.turn + 1) * per_tile > 4) return;
        lines_ = static_cast<int>(lines);
        at_ = t.panel_next + (t.turn * per_tile + pass * lines) * 64 * all_steps;
    }
    void advance(int64_t bytes) {
        at_ += bytes;
        if (at_ >= end_) {
            at_ = then_;
            end_ = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
        }
    }

    const uint8_t *at_ = nullptr, *then_ = nullptr, *end_ = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
    int64_t owed_ = 0;
    int lines_ = 0;
    bool near_ = false, asks_scales_ = false;
};
