// Kernel table: avx512.
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
constexpr int kLaneRows = 6, kTallRows = 12, kPairBytes = 8, kAttendLaneRows = 6;
constexpr int64_t kExpandFrom = 3;  // tiles: taking a panel apart for each costs more than doing it once
constexpr int lane_vectors(int) { return 4; }
// Vectors of sixteen outputs in a tile of codes: few rows need more of them to keep the multipliers busy.
constexpr int code_vectors(int rows) { return rows <= 2 ? 4 : 2; }
constexpr int kInt16Rows = 6;
constexpr int int16_vectors(int) { return 4; }
#include "rows.inl"
#include "activations.inl"
#include "ahead.inl"
#include "tiles_lanes.inl"
#include "halves_avx512.inl"
#include "expand12.inl"
#include "tiles_bf16_12.inl"
#include "tiles_bf16_12_lanes.inl"
#include "tiles_codes.inl"
#include "tiles_int16.inl"
#include "attend_lanes.inl"
}  // namespace

extern const KernelTable kAvx512Kernels = {
    "avx512",
    {
        {kLaneRows, true, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kLaneRows, false, f32_row_bytes, f32_prepare, bf16_lanes_rows<kLaneRows>},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_INT8, 16>, int16_rows<RP_INT8, kInt16Rows>},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_INT4, 16>, int16_rows<RP_INT4, kInt16Rows>},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_MXFP4, 16>, int16_rows<RP_MXFP4, kInt16Rows>},
        {kLaneRows, false, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_FP8, kLaneRows>},
        {kTallRows, false, f32_row_bytes, f32_prepare, bf16_12_rows<kTallRows, kLaneRows>, kExpandFrom, kLaneRows + 1},
    },
    {
        {}, {},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_INT8, 8>, int16_rows<RP_INT8, kInt16Rows>},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_INT4, 8>, int16_rows<RP_INT4, kInt16Rows>},
        {kInt16Rows, false, int16_row_bytes, int16_prepare<RP_MXFP4, 8>, int16_rows<RP_MXFP4, kInt16Rows>},
        {}, {},
    },
    kMixedLanes, kMixedLanes, kFloatLanes, plain_expand,
    RP_ROW_FUNCTIONS, pairs_peak,
};

}  // namespace rp
