// Kernel table: AVX-512 with the bf16 dot product, VNNI and VBMI.
#include "../isa.h"
#include "../ops/kv.h"
#include "../pack.h"

#include <cstddef>
#include <cstring>

#include "lanes_avx512.h"
#include "codes.h"
#include "table.inl"

namespace rp {
namespace {
constexpr int kLaneRows = 6, kAttendLaneRows = 4, kDotRows = 6, kA16Rows = 4, kA8Rows = 8, kFp8Rows = 6, kTallRows = 12, kPairBytes = 4, kWholeInt8Rows = 5, kWholeInt4Rows = 3;
constexpr int lane_vectors(int) { return 4; }
#include "rows.inl"
#include "activations.inl"
#include "ahead.inl"
#include "tiles_lanes.inl"
#include "attend_lanes.inl"
#include "tiles_bf16.inl"
#include "halves_avx512.inl"
#include "expand12.inl"
#include "tiles_bf16_12.inl"
#include "tiles_bf16_12_dot.inl"
#include "tiles_vnni.inl"
#include "tiles_fp8.inl"
#include "attend_bf16.inl"
}  // namespace

extern const KernelTable kAvx512Bf16Kernels = {
    "avx512_bf16",
    {
        {kLaneRows, true, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kDotRows, false, bf16_row_bytes, bf16_prepare, bf16_dot_rows<kDotRows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kInt8Zero, 2>, vnni_rows<RP_INT8, 2, kA16Rows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kInt4Zero, 2>, vnni_rows<RP_INT4, 2, kA16Rows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kFp4Zero, 2>, vnni_rows<RP_MXFP4, 2, kA16Rows>},
        {kFp8Rows, false, bf16_row_bytes, bf16_prepare, fp8_rows<kFp8Rows>},
        {kTallRows, false, bf16_row_bytes, bf16_prepare, bf16_12_rows<kTallRows, kDotRows>, 0, kDotRows + 1},
    },
    {
        {}, {},
        {kA8Rows, false, planes_row_bytes<1>, planes_prepare<kInt8Zero, 1>, vnni_rows<RP_INT8, 1, kA8Rows>},
        {kA8Rows, false, planes_row_bytes<1>, planes_prepare<kInt4Zero, 1>, vnni_rows<RP_INT4, 1, kA8Rows>},
        {kA8Rows, false, planes_row_bytes<1>, planes_prepare<kFp4Zero, 1>, vnni_rows<RP_MXFP4, 1, kA8Rows>},
        {}, {},
    },
    kPairDots, kMixedLanes, kFloatLanes, lookup_expand,
    RP_ROW_FUNCTIONS, best_peak,
};

}  // namespace rp
