// Kernel table: AVX-512 with the integer dot product (VNNI) and without that of bf16, which is multiplied in float32.
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
constexpr int kLaneRows = 6, kTallRows = 12, kPairBytes = 8, kAttendLaneRows = 6, kA16Rows = 4, kA8Rows = 8;
// Rows against a whole panel, not half of one: on Cascade Lake prompts in int8 1.05 to 1.08 times as fast, tiles of four to six rows
// in 4 bits 1.05 to 1.17.
constexpr int kWholeInt8Rows = 6, kWholeInt4Rows = 6;
constexpr int64_t kExpandFrom = 3;  // tiles: as in avx512.cpp
constexpr int lane_vectors(int) { return 4; }
constexpr int code_vectors(int rows) { return rows <= 2 ? 4 : 2; }  // likewise
#include "rows.inl"
#include "activations.inl"
#include "ahead.inl"
#include "tiles_lanes.inl"
#include "halves_avx512.inl"
#include "expand12.inl"
#include "tiles_bf16_12.inl"
#include "tiles_bf16_12_lanes.inl"
#include "tiles_codes.inl"
// The peak of bf16 is that of float32 here.
double dot_peak(int32_t format, int64_t iterations) { return lanes_peak(format, iterations); }
#include "tiles_vnni.inl"
#include "attend_lanes.inl"
}  // namespace

extern const KernelTable kAvx512VnniKernels = {
    "avx512_vnni",
    {
        {kLaneRows, true, f32_row_bytes, f32_prepare, f32_lanes_rows<kLaneRows>},
        {kLaneRows, false, f32_row_bytes, f32_prepare, bf16_lanes_rows<kLaneRows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kInt8Zero, 2>, vnni_rows<RP_INT8, 2, kA16Rows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kInt4Zero, 2>, vnni_rows<RP_INT4, 2, kA16Rows>},
        {kA16Rows, false, planes_row_bytes<2>, planes_prepare<kFp4Zero, 2>, vnni_rows<RP_MXFP4, 2, kA16Rows>},
        {kLaneRows, false, f32_row_bytes, f32_prepare, codes_lanes_rows<RP_FP8, kLaneRows>},
        {kTallRows, false, f32_row_bytes, f32_prepare, bf16_12_rows<kTallRows, kLaneRows>, kExpandFrom, kLaneRows + 1},
    },
    {
        {}, {},
        {kWholeInt8Rows, false, planes_row_bytes<1>, planes_prepare<kInt8Zero, 1>, vnni_rows<RP_INT8, 1, kWholeInt8Rows>},
        {kA8Rows, false, planes_row_bytes<1>, planes_prepare<kInt4Zero, 1>, vnni_rows<RP_INT4, 1, kA8Rows>},
        {kA8Rows, false, planes_row_bytes<1>, planes_prepare<kFp4Zero, 1>, vnni_rows<RP_MXFP4, 1, kA8Rows>},
        {}, {},
    },
    kMixedLanes, kMixedLanes, kFloatLanes, plain_expand,
    RP_ROW_FUNCTIONS, best_peak,
};

}  // namespace rp
