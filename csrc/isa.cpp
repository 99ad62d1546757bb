// Chooses the kernel table: the best this processor runs, or the one that was forced.
#include "isa.h"

#include <atomic>

namespace rp {

namespace {

bool supported(int isa) {
    if (isa == RP_PORTABLE) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == RP_AVX2) return avx2;
    if (isa == RP_AVX512) return avx512;
    if (isa == RP_AVX512_BF16)
        return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
               __builtin_cpu_supports("avx512vbmi");
#endif
    return false;
}

const KernelTable* table(int isa) {
    switch (isa) {
#if defined(__x86_64__)
    case RP_AVX2: return &kAvx2Kernels;
    case RP_AVX512: return &kAvx512Kernels;
    case RP_AVX512_BF16: return &kAvx512Bf16Kernels;
#endif
    default: return &kPortableKernels;
    }
}

int best() {
    int isa = RP_NUM_ISAS - 1;
    while (!supported(isa)) isa--;
    return isa;
}

std::atomic<int> current{best()};

}  // namespace

const KernelTable& kernels() { return *table(current.load(std::memory_order_relaxed)); }

}  // namespace rp

extern "C" {

int32_t rp_isa_supported(int32_t isa) { return isa >= 0 && isa < RP_NUM_ISAS && rp::supported(isa); }

int32_t rp_isa_current() { return rp::current.load(); }

int32_t rp_isa_force(int32_t isa) {
    if (!rp_isa_supported(isa)) return -1;
    rp::current.store(isa);
    return 0;
}
}
