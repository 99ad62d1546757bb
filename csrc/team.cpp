// Workers spin for a while after their last work, giving their core away to anyone who wants it (sched_yield), then
// sleep. So a step's calls find them awake, and an idle engine costs nothing.
//
// At a barrier a thread spins about as long as a healthy wait lasts, then sleeps on a futex: whoever is late has most
// likely lost its core to another process, and this one's core is free for either meanwhile.
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include <chrono>
#include <climits>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rp {

namespace {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kPausesBeforeSleep = 8000;  // some 100 to 250 microseconds: longer than nearly any healthy wait at a barrier
constexpr int kPausesBeforeYield = 250;   // of a worker without work

// Sleeps while `word` is `value`; may return early. `asleep` tells the waker whether a call is needed: it is raised
// before the word is read again (by the system), and read after the word has changed.
template <class Word> void sleep_while(std::atomic<Word>& word, Word value, std::atomic<int32_t>& asleep) {
#if defined(__linux__)
    static_assert(sizeof(word) == 4, "a futex has 32 bits");
    asleep.fetch_add(1, std::memory_order_seq_cst);
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    asleep.fetch_sub(1, std::memory_order_seq_cst);
#else
    (void)word, (void)value, (void)asleep;
    sched_yield();
#endif
}
template <class Word> void wake_all(std::atomic<Word>& word, std::atomic<int32_t>& asleep) {
#if defined(__linux__)
    if (asleep.load(std::memory_order_seq_cst) > 0) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)word, (void)asleep;
#endif
}

// Until `word` is no longer `value`.
template <class Word> void wait_while(std::atomic<Word>& word, Word value, std::atomic<int32_t>& asleep) {
    for (int spins = 0; spins < kPausesBeforeSleep; spins++) {
        if (word.load(std::memory_order_acquire) != value) return;
        relax();
    }
    while (word.load(std::memory_order_acquire) == value) sleep_while(word, value, asleep);
}

}  // namespace

void Team::resize(int size) {
    size_ = size;
    taken_ = std::vector<Taken>(static_cast<size_t>(size));
}

void Team::rewind() {
    next_.store(0, std::memory_order_relaxed);
    for (Taken& taken : taken_) taken.counts.store(0, std::memory_order_relaxed);
}

// Whose stretch has most items left; -1 when none has any.
int Team::longest(int64_t n) const {
    int best = -1;
    int64_t most = 0;
    for (int t = 0; t < size_; t++) {
        const Left there = left(t, n, taken_[t].counts.load(std::memory_order_relaxed));
        if (there.end - there.first > most) { most = there.end - there.first; best = t; }
    }
    return best;
}

int64_t Team::take(int thread, int64_t n) {
    for (int owner = thread; owner >= 0;) {
        uint64_t counts = taken_[owner].counts.load(std::memory_order_relaxed);
        const Left there = left(owner, n, counts);
        const bool own = owner == thread;
        if (there.first >= there.end) owner = longest(n);
        else if (taken_[owner].counts.compare_exchange_weak(counts, counts + (own ? 1 : uint64_t{1} << 32), std::memory_order_relaxed))
            return own ? there.first : there.end - 1;
    }
    return n;
}

int64_t Team::upcoming(int thread, int64_t n) const {
    const Left own = left(thread, n, taken_[thread].counts.load(std::memory_order_relaxed));
    if (own.first < own.end) return own.first;
    const int owner = longest(n);
    return owner < 0 ? n : left(owner, n, taken_[owner].counts.load(std::memory_order_relaxed)).end - 1;
}

void Team::barrier(Wanted* meanwhile) {
    if (size_ == 1) {
        rewind();
        return;
    }
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        rewind();
        phase_.store(phase + 1, std::memory_order_seq_cst);
        wake_all(phase_, asleep_);
        return;
    }
    // A line each time round: the processor stops at the one that memory has no room for, not for long.
    while (meanwhile && meanwhile->at < meanwhile->end && phase_.load(std::memory_order_acquire) == phase) {
        __builtin_prefetch(meanwhile->at, 0, 2);
        meanwhile->at += 64;
    }
    wait_while(phase_, phase, asleep_);
}

struct Pool {
    std::vector<std::thread> workers;
    Team team;
    void (*body)(Team&, int, void*) = nullptr;
    void* context = nullptr;
    int spin_us = 200;
    alignas(64) std::atomic<uint64_t> epoch{0};  // count of regions
    alignas(64) std::atomic<int32_t> running{0};
    std::atomic<int32_t> caller_asleep{0};
    alignas(64) std::atomic<int> asleep{0};
    std::atomic<bool> stopping{false};
    std::mutex sleep_mutex;
    std::condition_variable wake;

    Pool(int threads, int spin) : spin_us(spin) {
        team.resize(threads);
        for (int i = 1; i < threads; i++) workers.emplace_back([this, i] { work(i); });
    }

    ~Pool() {
        stopping.store(true);
        publish();
        for (auto& worker : workers) worker.join();
    }

    int size() const { return static_cast<int>(workers.size()) + 1; }

    void publish() {
        epoch.fetch_add(1, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard<std::mutex> lock(sleep_mutex);
            wake.notify_all();
        }
    }

    void wait_beyond(uint64_t seen) {
        const auto limit = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
        for (int spins = 0;; spins++) {
            if (epoch.load(std::memory_order_acquire) != seen) return;
            if (spins < kPausesBeforeYield) { relax(); continue; }
            if (std::chrono::steady_clock::now() >= limit) break;
            sched_yield();
        }
        std::unique_lock<std::mutex> lock(sleep_mutex);
        asleep.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return epoch.load(std::memory_order_seq_cst) != seen; });
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }

    void work(int index) {
        uint64_t seen = 0;
        for (;;) {
            wait_beyond(seen);
            seen = epoch.load(std::memory_order_acquire);
            if (stopping.load()) return;
            body(team, index, context);
            if (running.fetch_sub(1, std::memory_order_seq_cst) == 1) wake_all(running, caller_asleep);
        }
    }

    void run(void (*b)(Team&, int, void*), void* c) {
        team.rewind();
        if (size() == 1) { b(team, 0, c); return; }
        body = b;
        context = c;
        running.store(size() - 1, std::memory_order_relaxed);
        publish();
        b(team, 0, c);
        for (int32_t left; (left = running.load(std::memory_order_acquire)) != 0;) wait_while(running, left, caller_asleep);
    }
};

namespace {

std::mutex pool_mutex;
Pool* pool = nullptr;
int wanted_threads = 1, wanted_spin_us = 200;

// Threads do not survive fork: the child forgets the pool (and leaks it) and makes its own at its first call.
void forget_pool_in_child() {
    pool = nullptr;
    new (&pool_mutex) std::mutex();
}

void stop_pool_at_exit() {
    delete pool;
    pool = nullptr;
}

Pool& ready_pool() {
    static const bool registered = [] {
        pthread_atfork(nullptr, nullptr, forget_pool_in_child);
        atexit(stop_pool_at_exit);
        return true;
    }();
    (void)registered;
    if (!pool) pool = new Pool(wanted_threads, wanted_spin_us);
    return *pool;
}

}  // namespace

void parallel(void (*body)(Team&, int, void*), void* context) {
    std::lock_guard<std::mutex> lock(pool_mutex);
    ready_pool().run(body, context);
}

int pool_threads() { return wanted_threads; }

void set_pool_threads(int threads, int spin_us) {
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (threads == wanted_threads && spin_us == wanted_spin_us) return;
    delete pool;
    pool = nullptr;
    wanted_threads = threads;
    wanted_spin_us = spin_us;
}

}  // namespace rp
