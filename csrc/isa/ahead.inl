// Fetching the panel that comes next while this one is multiplied, evenly over the tile's steps and passes: asked for
// all at once, it would stop the tile until memory has answered.
struct Ahead {
    const uint8_t* at;
    int64_t lines;     // per step
    int64_t owed = 0;  // bytes of scales passed and not asked for yet

    // Pass `pass` of `passes` over the panel (each takes some of its columns).
    Ahead(const Tile& t, int pass, int passes) {
        lines = t.prefetch_lines > passes ? t.prefetch_lines / passes : 1;
        const bool mine = t.prefetch && pass < t.prefetch_lines;
        at = mine ? t.prefetch + pass * lines * 64 * (t.panel_bytes / 256) : nullptr;
    }
    void ask() {
        if (!at) return;
        prefetch(at);
        if (lines > 1) prefetch(at + 64);
        if (lines > 2) { prefetch(at + 128); prefetch(at + 192); }
        at += 64 * lines;
    }
    // A group's scales are part of the panel and of no step.
    void ask_scales(int64_t bytes) {
        if (!at) return;
        for (owed += bytes * lines / 4; owed >= 64; owed -= 64, at += 64) prefetch(at);
    }
};
