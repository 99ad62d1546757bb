// What an operator's body sees: the team it runs in, the kernel table, and its workspace.
//
// An operator is two functions: how many workspace bytes it needs for a number of rows, and the body that every thread
// of the team runs. The body may assume a barrier before it and leaves none behind it: the step runner puts one there.
#pragma once
#include <atomic>
#include <cstring>

#include "../isa.h"
#include "../pack.h"
#include "../team.h"

namespace rp {

struct Region {
    const KernelTable& table;
    Team& team;
    int thread;
    uint8_t* shared;          // workspace of the operator, 64-byte aligned
    uint8_t* local;           // this thread's own
    const uint8_t* after;     // the weights that this thread reads first after this operator, or null
    std::atomic<int>& error;  // 0, or the code of the first failure
};

constexpr int64_t kWantedBytes = 64 << 10;  // of its next weights: what a thread fetches while it waits for the others

struct Workspace { int64_t shared_bytes, local_bytes; };

enum Error { kOk = 0, kBadExpertId = 1, kBadTokenId = 2, kBadSlot = 3, kBadOp = 4, kNoFormat = 5, kBadShape = 6, kNoMemory = 7 };

struct Operator {
    Workspace (*workspace)(const void* op, int64_t rows, int threads);
    void (*body)(const void* op, int64_t rows, Region& region);
    // The panel that a thread will start with, where that is known before the operator runs.
    const uint8_t* (*first_panel)(const void* op, int64_t rows, int thread, int threads) = nullptr;
};

extern const Operator kLinear, kMoe, kNorm, kRope, kRoute, kEmbed, kGlu, kKvWrite, kAttention, kAddShared, kRopeTables,
    kMap, kSample, kUnliftedLinear, kLiftedAttention;

inline const uint8_t* offset(const void* base, int64_t elements, int32_t dtype) {
    return static_cast<const uint8_t*>(base) + elements * (dtype == RP_DTYPE_F32 ? 4 : 2);
}
inline uint8_t* offset(void* base, int64_t elements, int32_t dtype) {
    return static_cast<uint8_t*>(base) + elements * (dtype == RP_DTYPE_F32 ? 4 : 2);
}

// Hands out consecutive 64-byte aligned pieces of a workspace; with a null base it only adds up.
struct Carver {
    uint8_t* at;
    int64_t used = 0;
    explicit Carver(uint8_t* base) : at(base) {}
    template <class T> T* take(int64_t count) {
        T* piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
        used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return piece;
    }
};

}  // namespace rp
