// Kernel table: AVX-512 with the bf16 dot product, VNNI and VBMI.
#include "../isa.h"
#include "../ops/kv.h"
#include "../pack.h"

#include <cstring>

#include "lanes_avx512.h"
#include "codes.h"
#include "table.inl"

namespace rp {
namespace {
constexpr int kLaneRows = 6, kLaneVectors = 4, kDotRows = 6, kIntegerRows = 4, kFp8Rows = 5;
#include "rows.inl"
#include "tiles_lanes.inl"
#include "attend_lanes.inl"
#include "tiles_bf16.inl"
#include "tiles_vnni.inl"
#include "attend_bf16.inl"
}  // namespace

extern const KernelTable kAvx512Bf16Kernels = {
    "avx512_bf16",
    {
        {kLaneRows, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kDotRows, bf16_row_bytes, bf16_prepare, bf16_dot_rows<kDotRows>},
        {kIntegerRows, planes_row_bytes, planes_prepare<kInt8Zero>, vnni_rows<RP_INT8, kIntegerRows>},
        {kIntegerRows, planes_row_bytes, planes_prepare<kInt4Zero>, vnni_rows<RP_INT4, kIntegerRows>},
        {kIntegerRows, planes_row_bytes, planes_prepare<kFp4Zero>, vnni_rows<RP_MXFP4, kIntegerRows>},
        {kFp8Rows, bf16_row_bytes, bf16_prepare, fp8_rows<kFp8Rows>},
    },
    kPairDots, kMixedLanes, kFloatLanes, lookup_expand,
    RP_ROW_FUNCTIONS, best_peak,
};

}  // namespace rp
