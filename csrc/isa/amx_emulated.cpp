// Kernel table: that of AMX with its tile instructions in plain C++: slow, for tests, and never chosen by itself.
#include "amx.inl"

namespace rp {
extern const KernelTable kAmxEmulatedKernels = {"amx_emulated", RP_AMX_FORMATS(EmulatedTiles)};
}
