// Operators that treat each row alone: norms, rotary embedding, embedding lookup, gated activations.
// Rows are dealt to threads in contiguous runs.
#include <cmath>

#include "op.h"

namespace rp {
namespace {

Workspace none(const void*, int64_t, int) { return {0, 0}; }

template <class Body> void each_row(const Region& region, int64_t n, Body&& body) {
    const int64_t size = region.team.size(), first = n * region.thread / size, last = n * (region.thread + 1) / size;
    for (int64_t i = first; i < last; i++) body(i);
}

// body(row, part), of n rows of some parts each.
template <class Body> void each_part(const Region& region, int64_t n, int64_t parts, Body&& body) {
    const int64_t size = region.team.size(), first = n * parts * region.thread / size, last = n * parts * (region.thread + 1) / size;
    int64_t row = first / parts, part = first % parts;
    for (int64_t i = first; i < last; i++) {
        body(row, part);
        if (++part == parts) { part = 0; row++; }
    }
}

void norm(const void* raw, int64_t rows, Region& region) {
    const NormOp& op = *static_cast<const NormOp*>(raw);
    const KernelTable& t = region.table;
    each_part(region, rows, op.groups, [&](int64_t row, int64_t group) {
        const int64_t at = group * op.width;
        const void* x = offset(op.x, row * op.x_stride + at, op.dtype);
        if (op.delta) {
            void* sum = offset(op.sum, row * op.sum_stride + at, op.dtype);
            t.add_scaled(x, offset(op.delta, row * op.delta_stride + at, op.dtype), op.delta_scale, op.dtype, op.width, sum);
            x = sum;
        }
        const float n = static_cast<float>(op.width);
        const float centre = op.mean_centred ? t.sum_of(x, op.dtype, op.width) / n : 0.0f;
        const float scale = 1.0f / std::sqrt(t.sum_squares(x, op.dtype, op.width, centre) / n + op.eps);
        t.normalise(x, op.dtype, op.weight, op.weight_dtype, op.weight_offset, op.bias, centre, scale, op.width,
                    offset(op.y, row * op.y_stride + at, op.dtype));
    });
}

void rope(const void* raw, int64_t rows, Region& region) {
    const RopeOp& op = *static_cast<const RopeOp*>(raw);
    each_part(region, rows, op.heads, [&](int64_t row, int64_t head) {
        const int64_t at = head * op.width;
        const uint8_t* x = offset(op.x, row * op.x_stride + head * op.x_head_stride, op.dtype);
        uint8_t* y = offset(op.y, row * op.y_stride + at, op.dtype);
        const int64_t table = row * op.table_stride, turned = 2 * op.half;
        region.table.rotate(x, op.dtype, op.cos + table, op.sin + table, op.half, op.interleaved, y);
        const size_t size = op.dtype == RP_DTYPE_F32 ? 4 : 2;
        if (turned < op.width) memcpy(offset(y, turned, op.dtype), offset(x, turned, op.dtype), (op.width - turned) * size);
    });
}

void rope_tables(const void* raw, int64_t rows, Region& region) {
    const RopeTablesOp& op = *static_cast<const RopeTablesOp*>(raw);
    each_row(region, rows, [&](int64_t row) {
        const float position = static_cast<float>(op.positions[row]);
        for (int64_t i = 0; i < op.half; i++) {
            const float angle = position * op.inv_freq[i];
            op.cos[row * op.half + i] = std::cos(angle) * op.magnitude;
            op.sin[row * op.half + i] = std::sin(angle) * op.magnitude;
        }
    });
}

void embed(const void* raw, int64_t rows, Region& region) {
    const EmbedOp& op = *static_cast<const EmbedOp*>(raw);
    Carver carve(region.local);
    float* wide = carve.take<float>(op.width);
    each_row(region, rows, [&](int64_t i) {
        const int64_t id = op.ids[i];
        if (id < 0 || id >= op.vocab) { region.error.store(kBadTokenId); return; }
        const uint8_t* x = offset(op.table, id * op.width, op.table_dtype);
        uint8_t* y = offset(op.y, i * op.y_stride, op.y_dtype);
        if (op.scale == 1.0f && op.table_dtype == op.y_dtype) {
            memcpy(y, x, static_cast<size_t>(op.width) * (op.y_dtype == RP_DTYPE_F32 ? 4 : 2));
            return;
        }
        region.table.widen(x, op.table_dtype, op.width, wide);
        region.table.scale(wide, op.scale, op.width);
        region.table.narrow(wide, op.y_dtype, op.width, y);
    });
}
Workspace embed_workspace(const void* raw, int64_t, int) { return {0, static_cast<const EmbedOp*>(raw)->width * 4}; }

void glu(const void* raw, int64_t rows, Region& region) {
    const GluOp& op = *static_cast<const GluOp*>(raw);
    each_row(region, rows, [&](int64_t i) {
        const uint8_t* x = offset(op.x, i * op.x_stride, op.dtype);
        region.table.glu_typed(x, offset(x, op.width, op.dtype), op.dtype, op.width, op.activation, op.alpha, op.limit,
                               offset(op.y, i * op.y_stride, op.dtype));
    });
}

void map(const void* raw, int64_t rows, Region& region) {
    const MapOp& op = *static_cast<const MapOp*>(raw);
    each_row(region, rows, [&](int64_t i) {
        region.table.map(offset(op.x, i * op.x_stride, op.dtype), op.dtype, op.scale, op.limit, op.width,
                         offset(op.y, i * op.y_stride, op.dtype));
    });
}

float scalar(const void* p, int64_t i, int32_t dtype) {
    if (dtype == RP_DTYPE_F32) return static_cast<const float*>(p)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i]) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void add_shared(const void* raw, int64_t rows, Region& region) {
    const AddSharedOp& op = *static_cast<const AddSharedOp*>(raw);
    each_row(region, rows, [&](int64_t i) {
        const float gate = op.gate ? 1.0f / (1.0f + std::exp(-scalar(op.gate, i * op.gate_stride, op.dtype))) : 1.0f;
        region.table.add_scaled(offset(op.routed, i * op.routed_stride, op.dtype),
                                offset(op.shared, i * op.shared_stride, op.dtype), gate, op.dtype, op.width,
                                offset(op.y, i * op.y_stride, op.dtype));
    });
}

}  // namespace

extern const Operator kNorm{none, norm};
extern const Operator kRope{none, rope};
extern const Operator kRopeTables{none, rope_tables};
extern const Operator kEmbed{embed_workspace, embed};
extern const Operator kGlu{none, glu};
extern const Operator kMap{none, map};
extern const Operator kAddShared{none, add_shared};

}  // namespace rp
