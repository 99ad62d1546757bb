// Chooses the kernel table: the best this processor runs, or the one that was forced.
#include "isa.h"

#include <atomic>

#if defined(RP_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rp {

namespace {

#if defined(RP_HAS_AMX)
// Tiles need the processor, a system that saves them, and its leave for this process, whose threads then carry 8 KiB more state.
bool may_use_tiles() {
    unsigned a, b, c, d, low, high;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kWanted = kBf16 | kTile | kInt8;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kWanted) != kWanted) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    constexpr unsigned kTileConfig = 1u << 17, kTileData = 1u << 18;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & (kTileConfig | kTileData)) != (kTileConfig | kTileData)) return false;
    constexpr long kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}
#endif

bool supported(int isa) {
    if (isa == RP_PORTABLE) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == RP_AVX2) return avx2;
    if (isa == RP_AVX512) return avx512;
    const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    if (isa == RP_AVX512_VNNI) return avx512_vnni;
    const bool avx512_bf16 = avx512_vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
    if (isa == RP_AVX512_BF16 || isa == RP_AMX_EMULATED) return avx512_bf16;
#if defined(RP_HAS_AMX)
    if (isa == RP_AMX) return avx512_bf16 && may_use_tiles();
#endif
#endif
    return false;
}

const KernelTable* table(int isa) {
    switch (isa) {
#if defined(__x86_64__)
    case RP_AVX2: return &kAvx2Kernels;
    case RP_AVX512: return &kAvx512Kernels;
    case RP_AVX512_VNNI: return &kAvx512VnniKernels;
    case RP_AVX512_BF16: return &kAvx512Bf16Kernels;
    case RP_AMX_EMULATED: return &kAmxEmulatedKernels;
#if defined(RP_HAS_AMX)
    case RP_AMX: return &kAmxKernels;
#endif
#endif
    default: return &kPortableKernels;
    }
}

int best() {
    int isa = RP_AMX;
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

int32_t rp_isa_reads(int32_t format) { return rp::kernels().formats[format].expands_from != 1; }

int32_t rp_isa_force(int32_t isa) {
    if (!rp_isa_supported(isa)) return -1;
    rp::current.store(isa);
    return 0;
}
}
