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
constexpr int kLaneRows = 6, kAttendLaneRows = 4;
constexpr int64_t kExpandFrom = 4;  // tiles: taking a panel apart for each costs more than doing it once
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
inline void add_products(__m512* acc, __m512i a, __m512i b, const uint8_t* row, int64_t k) {
    const float* x = reinterpret_cast<const float*>(row) + 2 * k;
    const __m512 first = set1(x[0]), second = set1(x[1]);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    acc[0] = fma(first, _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), acc[0]);
    acc[1] = fma(first, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc[1]);
    acc[0] = fma(second, _mm512_castsi512_ps(_mm512_and_si512(a, high)), acc[0]);
    acc[1] = fma(second, _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc[1]);
}
#include "tiles_bf16_12.inl"
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
        {kLaneRows, false, f32_row_bytes, f32_prepare, bf16_12_rows<kLaneRows, kLaneRows>, kExpandFrom},
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
