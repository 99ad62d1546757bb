// Kernel table: avx2.
#include "../isa.h"
#include "../ops/kv.h"
#include "../pack.h"

#include <cstring>

#include "lanes_avx2.h"
#include "codes.h"
#include "table.inl"

namespace rp {
namespace {
constexpr int kLaneRows = 6, kLaneVectors = 1;
#include "rows.inl"
#include "tiles_lanes.inl"
#include "attend_lanes.inl"
}  // namespace

extern const KernelTable kAvx2Kernels = {
    "avx2",
    {
        {kLaneRows, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kLaneRows, f32_row_bytes, f32_prepare, bf16_lanes_rows<kLaneRows>},
        {kLaneRows, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_INT8, kLaneRows>},
        {kLaneRows, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_INT4, kLaneRows>},
        {kLaneRows, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_MXFP4, kLaneRows>},
        {kLaneRows, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_FP8, kLaneRows>},
    },
    kMixedLanes, kMixedLanes, kFloatLanes, plain_expand,
    RP_ROW_FUNCTIONS, lanes_peak,
};

}  // namespace rp
