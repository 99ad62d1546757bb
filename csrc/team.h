// One pool of threads for the whole process. A region is a function every thread runs at once (SPMD): between two
// barriers there is at most one shared loop, whose items are claimed one at a time. Which thread ran an item never
// shows in a result, because items write disjoint memory.
#pragma once
#include <atomic>
#include <cstdint>

namespace rp {

class Team {
public:
    int size() const { return size_; }
    // All threads meet here; the shared loop is rewound.
    void barrier();
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

private:
    friend struct Pool;
    int size_ = 1;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int32_t> asleep_{0};
    std::atomic<int64_t> waited_ns_{0};  // asleep at barriers, all threads of the region together
};

// Runs body(team, thread) on the first `threads` threads of the pool and returns when all have. Calls from several threads queue.
void parallel(void (*body)(Team&, int, void*), void* context, int threads);
int pool_threads();
// How many of them are worth using now: fewer while other processes keep taking the cores away.
int threads_now();
void set_pool_threads(int threads, int spin_us);

}  // namespace rp
