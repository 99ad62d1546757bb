// Kernel table: AVX-512 with the bf16 dot product, VNNI and VBMI.
#include "../isa.h"

#include <cstring>

#include "lanes_avx512.h"
#include "table.inl"

namespace rp {
namespace {
constexpr int kLaneRows = 6, kLaneVectors = 4, kDotRows = 6;
#include "rows.inl"
#include "tiles_lanes.inl"
#include "tiles_bf16.inl"
}  // namespace

extern const KernelTable kAvx512Bf16Kernels = {
    "avx512_bf16",
    {
        {kLaneRows, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kDotRows, bf16_row_bytes, bf16_prepare, bf16_dot_rows<kDotRows>},
        {}, {}, {}, {},
    },
    6, false, dot_scores<6>, dot_values<6>,
    RP_ROW_FUNCTIONS, dot_peak,
};

}  // namespace rp
