// All that AMX's kernel tables are made of: AVX-512 with bf16, VNNI and VBMI, and tiles for bf16 and for many rows of integer
// codes. Who executes the tiles is for the file that includes this to say.
#include "../isa.h"
#include "../ops/kv.h"
#include "../pack.h"

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "lanes_avx512.h"
#include "amx_tiles.h"
#include "codes.h"
#include "table.inl"

namespace rp {
namespace {
constexpr int kLaneRows = 6, kAttendLaneRows = 4, kDotRows = 6, kA16Rows = 4, kA8Rows = 8, kFp8Rows = 6, kWholeInt8Rows = 5, kWholeInt4Rows = 3;
constexpr int lane_vectors(int) { return 4; }
#include "rows.inl"
#include "activations.inl"
#include "ahead.inl"
#include "tiles_lanes.inl"
#include "attend_lanes.inl"
#include "tiles_bf16.inl"
#include "halves_avx512.inl"
#include "expand12.inl"
#include "tiles_vnni.inl"
#include "tiles_fp8.inl"
#include "attend_bf16.inl"
#include "tiles_amx.inl"
}  // namespace

}  // namespace rp
