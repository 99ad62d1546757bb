// Kernel table: AMX.
#include "amx.inl"

namespace rp {
extern const KernelTable kAmxKernels = {"amx", RP_AMX_FORMATS(HardwareTiles)};
}
