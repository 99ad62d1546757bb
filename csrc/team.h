// One pool of threads for the whole process. A region is a function every thread runs at once (SPMD): between two
// barriers there is at most one shared loop, whose items are claimed one at a time, in order (`each`) or from a stretch
// of one's own (`walk`). Which thread ran an item never shows in a result, because items write disjoint memory.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

namespace rp {

// Memory that a thread will read soon: [at, end) is not asked for yet.
struct Wanted { const uint8_t *at, *end; };

class Team {
public:
    int size() const { return size_; }
    // All threads meet here; the shared loop is rewound. Whoever waits fetches `meanwhile` into its cache.
    void barrier(Wanted* meanwhile = nullptr);
    // Claims the next item of the shared loop; the caller stops at its own bound.
    int64_t claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

    // body(i, next): `next` is the item this thread runs afterwards (or >= n), so that its data can be prefetched.
    template <class Body> void each(int64_t n, Body&& body) {
        if (size_ == 1) {
            for (int64_t i = 0; i < n; i++) body(i, i + 1);
            return;
        }
        for (int64_t i = claim(), after; i < n; i = after) {
            after = claim();
            body(i, after);
        }
    }

    // The same, for items that lie side by side in memory: every thread walks a stretch of its own, because memory
    // answers a long run faster than turns, and whoever is done takes items from the end of the longest stretch left.
    // `next` is a guess: another thread may take that item first.
    static int64_t stretch_start(int64_t n, int thread, int size) { return n * thread / size; }
    template <class Body> void walk(int thread, int64_t n, Body&& body) {
        for (int64_t i = take(thread, n); i < n; i = take(thread, n)) body(i, upcoming(thread, n));
    }

private:
    friend struct Pool;

    // Items taken from a stretch: from its front by its owner, from its back by others.
    struct alignas(64) Taken {
        std::atomic<uint64_t> counts{0};  // front in the low half, back in the high half
    };
    struct Left { int64_t first, end; };
    Left left(int owner, int64_t n, uint64_t counts) const {
        return {stretch_start(n, owner, size_) + static_cast<int64_t>(counts & 0xffffffffu),
                stretch_start(n, owner + 1, size_) - static_cast<int64_t>(counts >> 32)};
    }
    // This thread's next item, or n.
    int64_t take(int thread, int64_t n);
    int64_t upcoming(int thread, int64_t n) const;
    int longest(int64_t n) const;
    void resize(int size);
    void rewind();  // by one thread, while no other claims

    int size_ = 1;
    std::vector<Taken> taken_{1};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int32_t> asleep_{0};
};

// Runs body(team, thread) on every thread of the pool and returns when all have. Calls from several threads queue.
void parallel(void (*body)(Team&, int, void*), void* context);
int pool_threads();
void set_pool_threads(int threads, int spin_us);

}  // namespace rp
