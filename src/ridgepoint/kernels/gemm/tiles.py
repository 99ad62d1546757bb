# mypy: disallow-untyped-defs=False
"""What the product kernels share: which tile comes next, where its block lies, and what follows the products."""

from __future__ import annotations

import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import INTERPRETED


@triton.jit
def tile_at(index, num_blocks, num_columns, GROUP: tl.constexpr):
    """(block, column) of the tile `index`: GROUP blocks of rows pass under every column before the next group, so that the
    group's rows and the columns' weights stay in the L2 cache while they are needed."""
    per_group = GROUP * num_columns
    first = index // per_group * GROUP
    size = tl.minimum(num_blocks - first, GROUP)
    return first + index % per_group % size, index % per_group // size


@triton.jit
def block_at(block, block_expert, block_start, block_rows, num_rows, GROUPED: tl.constexpr, BLOCK_M: tl.constexpr):
    """(expert, first row, number of rows) of a block. Without GROUPED there is one matrix, and blocks follow each other."""
    if GROUPED:
        return tl.load(block_expert + block), tl.load(block_start + block), tl.load(block_rows + block)
    else:
        return tl.program_id(0) * 0, block * BLOCK_M, num_rows - block * BLOCK_M


@triton.jit
def bias_of(bias, matrix, features, part_rows):
    """What is added to each feature, as a column."""
    at = bias + matrix * part_rows + features
    return tl.load(at, mask=features < part_rows, other=0.0).to(tl.float32)[:, None]


@triton.jit
def store_rows(y, out, out_stride, rows, present, features, part_rows, GROUPED: tl.constexpr):
    """Put features x rows where they belong. The rows of groups have room for whole blocks."""
    inside = (features < part_rows)[None, :]
    if not GROUPED:
        inside = inside & present[:, None]
    at = out + rows.to(tl.int64)[:, None] * out_stride + features[None, :]
    tl.store(at, y.T.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid(x):
    """Within two units in the last place of float32, without the range checks that the library's version spends."""
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634], tl.float32, True, 1
        )
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr, alpha, limit):
    """`act(gate) * up`: see `kernels.glu.reference`."""
    if ACTIVATION == "clamped":
        # a comparison, not a minimum, keeps NaN
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        return gate * sigmoid(alpha * gate) * (up + 1.0)
    else:
        return gate * sigmoid(gate) * up
