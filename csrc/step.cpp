// Runs a list of operators in one parallel region, and the library's smaller entry points.
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <mutex>

#include "ops/op.h"

namespace rp {
namespace {

const Operator* const kOperators[RP_NUM_OPS] = {
    &kLinear, &kMoe, &kNorm, &kRope, &kRoute, &kEmbed, &kGlu, &kKvWrite, &kAttention, &kAddShared, &kRopeTables,
    &kMap, &kSample, &kUnliftedLinear, &kLiftedAttention,
};

// Grows and never shrinks; one step runs at a time.
struct Arena {
    uint8_t* memory = nullptr;
    int64_t bytes = 0;
    bool reserve(int64_t wanted) {
        if (wanted <= bytes) return true;
        rp_free(memory, bytes);
        wanted = round_up(wanted + wanted / 4, 2 << 20);
        memory = static_cast<uint8_t*>(rp_alloc(wanted));
        bytes = memory ? wanted : 0;
        return memory != nullptr;
    }
};

std::mutex step_mutex;
Arena arena;
const char* last_error = "";

const char* const kMessages[] = {
    "", "an expert id is outside [0, E)", "a token id is outside the vocabulary", "a KV slot is outside the cache",
    "unknown operator", "the ISA in use has no kernel for this weight format", "a shape is not supported", "out of memory",
};

int64_t rows_of(const OpHeader& header, int64_t tokens, int64_t logit_rows) {
    return header.rows_from == RP_ROWS_TOKENS ? tokens : header.rows_from == RP_ROWS_LOGITS ? logit_rows : header.rows;
}

struct Step {
    const void* const* ops;
    int64_t count, tokens, logit_rows, shared_bytes, local_bytes;
    double* seconds;
    std::atomic<int> error{kOk};
};

// The weights that a thread reads first after operator `i`; null when they are experts not chosen yet.
const uint8_t* panel_after(const Step& step, int64_t i, int thread, int threads) {
    while (++i < step.count) {
        const OpHeader& header = *static_cast<const OpHeader*>(step.ops[i]);
        const int64_t rows = rows_of(header, step.tokens, step.logit_rows);
        if (header.op == RP_OP_MOE) return nullptr;
        if (rows > 0 && kOperators[header.op]->first_panel) return kOperators[header.op]->first_panel(step.ops[i], rows, thread, threads);
    }
    return nullptr;
}

void run_step(Team& team, int thread, void* context) {
    Step& step = *static_cast<Step*>(context);
    Region region{kernels(), team, thread, arena.memory, arena.memory + step.shared_bytes + thread * step.local_bytes, nullptr, step.error};
    Wanted wanted{nullptr, nullptr};
    auto before = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < step.count; i++) {
        const OpHeader& header = *static_cast<const OpHeader*>(step.ops[i]);
        const int64_t rows = rows_of(header, step.tokens, step.logit_rows);
        if (rows > 0) {
            const uint8_t* before_this = region.after;
            region.after = panel_after(step, i, thread, team.size());
            if (region.after != before_this) wanted = {region.after, region.after ? region.after + kWantedBytes : nullptr};
            kOperators[header.op]->body(step.ops[i], rows, region);
            team.barrier(&wanted);
        }
        if (step.seconds && thread == 0) {
            const auto now = std::chrono::steady_clock::now();
            step.seconds[i] += std::chrono::duration<double>(now - before).count();
            before = now;
        }
    }
}

bool has_format(const PackedWeight* w) { return kernels_for(kernels(), *w).tile != nullptr; }

int fail(int code) {
    last_error = kMessages[code];
    return code;
}

int run(const void* const* ops, int64_t count, int64_t tokens, int64_t logit_rows, double* seconds) {
    std::lock_guard<std::mutex> lock(step_mutex);
    Step step{ops, count, tokens, logit_rows, 0, 0, seconds};
    const int threads = pool_threads();
    for (int64_t i = 0; i < count; i++) {
        const OpHeader& header = *static_cast<const OpHeader*>(ops[i]);
        if (header.op < 0 || header.op >= RP_NUM_OPS || !kOperators[header.op]) return fail(kBadOp);
        if (header.op == RP_OP_LINEAR && !has_format(static_cast<const LinearOp*>(ops[i])->weight)) return fail(kNoFormat);
        if (header.op == RP_OP_UNLIFTED_LINEAR && !has_format(static_cast<const UnliftedLinearOp*>(ops[i])->linear.weight)) return fail(kNoFormat);
        if (header.op == RP_OP_MOE) {
            const MoeOp& moe = *static_cast<const MoeOp*>(ops[i]);
            if (!has_format(moe.gate_up) || !has_format(moe.down)) return fail(kNoFormat);
        }
        const Workspace w = kOperators[header.op]->workspace(ops[i], rows_of(header, tokens, logit_rows), threads);
        if (w.shared_bytes > step.shared_bytes) step.shared_bytes = w.shared_bytes;
        if (w.local_bytes > step.local_bytes) step.local_bytes = w.local_bytes;
    }
    step.shared_bytes = round_up(step.shared_bytes, 4096);
    step.local_bytes = round_up(step.local_bytes, 4096) + 4096;  // threads never share a page
    if (!arena.reserve(step.shared_bytes + threads * step.local_bytes)) return fail(kNoMemory);
    parallel(run_step, &step);
    return step.error.load() ? fail(step.error.load()) : kOk;
}

struct Bytes {
    uint8_t* data;
    int64_t size;
    std::atomic<int> sink{0};
};

constexpr int64_t kPiece = 1 << 18;

void write_region(Team& team, int thread, void* context) {
    const Bytes& all = *static_cast<Bytes*>(context);
    team.walk(thread, ceil_div(all.size, kPiece), [&](int64_t i, int64_t) {
        memset(all.data + i * kPiece, 1, static_cast<size_t>(std::min(kPiece, all.size - i * kPiece)));
    });
}

void read_region(Team& team, int thread, void* context) {
    Bytes& all = *static_cast<Bytes*>(context);
    team.walk(thread, all.size / kPiece, [&](int64_t i, int64_t) {
        if (kernels().read_sum(all.data + i * kPiece, kPiece) > 1.0) all.sink.store(1);
    });
}

struct PeakProbe {
    int32_t format, milliseconds;
    std::atomic<double> flops{0.0};
};

void peak_region(Team&, int, void* context) {
    PeakProbe& probe = *static_cast<PeakProbe*>(context);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(probe.milliseconds);
    double flops = 0;
    while (std::chrono::steady_clock::now() < end) flops += kernels().peak(probe.format, 20000);
    for (double seen = probe.flops.load(); !probe.flops.compare_exchange_weak(seen, seen + flops);) {}
}

}  // namespace
}  // namespace rp

extern "C" {

int32_t rp_abi_version() { return RP_ABI_VERSION; }
int32_t rp_layout_version() { return RP_LAYOUT_VERSION; }
const char* rp_last_error() { return rp::last_error; }
int32_t rp_threads() { return rp::pool_threads(); }

int32_t rp_set_threads(int32_t threads, int32_t spin_us) {
    if (threads < 1 || spin_us < 0) return -1;
    rp::set_pool_threads(threads, spin_us);
    return 0;
}

constexpr int64_t kHuge = 2 << 20;

void* rp_alloc(int64_t bytes) {
    if (bytes <= 0) bytes = 1;
    if (bytes < kHuge) {
        void* small = aligned_alloc(64, static_cast<size_t>(rp::round_up(bytes, 64)));
        if (small) memset(small, 0, static_cast<size_t>(rp::round_up(bytes, 64)));
        return small;
    }
    // Fresh pages, which are zero; each appears when first written, by whichever thread writes it.
    const size_t wanted = static_cast<size_t>(rp::round_up(bytes, kHuge));
    void* area = mmap(nullptr, wanted + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) return nullptr;
    const size_t before = static_cast<size_t>(-reinterpret_cast<intptr_t>(area) & (kHuge - 1));
    uint8_t* memory = static_cast<uint8_t*>(area) + before;
    if (before) munmap(area, before);
    munmap(memory + wanted, kHuge - before);
#ifdef MADV_HUGEPAGE
    madvise(memory, wanted, MADV_HUGEPAGE);
#endif
    return memory;
}

void rp_free(void* memory, int64_t bytes) {
    if (bytes < kHuge) free(memory);
    else munmap(memory, static_cast<size_t>(rp::round_up(bytes, kHuge)));
}

int32_t rp_run(const void* const* ops, int64_t count, int64_t tokens, int64_t logit_rows) {
    return rp::run(ops, count, tokens, logit_rows, nullptr);
}

int32_t rp_profile(const void* const* ops, int64_t count, int64_t tokens, int64_t logit_rows, double* seconds) {
    return rp::run(ops, count, tokens, logit_rows, seconds);
}

void rp_fill(uint8_t* data, int64_t bytes) {
    std::lock_guard<std::mutex> lock(rp::step_mutex);
    rp::Bytes all{data, bytes};
    rp::parallel(rp::write_region, &all);
}

double rp_read_s(const uint8_t* data, int64_t bytes) {
    std::lock_guard<std::mutex> lock(rp::step_mutex);
    rp::Bytes all{const_cast<uint8_t*>(data), bytes};
    const auto start = std::chrono::steady_clock::now();
    rp::parallel(rp::read_region, &all);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double rp_probe_peak(int32_t format, int32_t milliseconds) {
    std::lock_guard<std::mutex> lock(rp::step_mutex);
    rp::PeakProbe probe{format, milliseconds};
    const auto start = std::chrono::steady_clock::now();
    rp::parallel(rp::peak_region, &probe);
    return probe.flops.load() / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
}
