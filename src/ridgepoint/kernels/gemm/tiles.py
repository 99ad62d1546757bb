# mypy: disallow-untyped-defs=False
"""What the product kernels share: which tile comes next, and the activation behind gate and up."""

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
