# mypy: disallow-untyped-defs=False
"""Spreading on a GPU: one program a row, as long as the row is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.spread import cpu
from ridgepoint.kernels.triton_call import after_previous, on_device, overlapped

COLUMNS = 256  # at a time: 4,096 tokens of 16-token blocks


def spread(packed_N: torch.Tensor, width_1: torch.Tensor, out_BW: torch.Tensor) -> None:
    if not on_device(packed_N, width_1, out_BW):
        cpu.spread(packed_N, width_1, out_BW)
    elif len(out_BW):
        spread_rows[(len(out_BW),)](
            packed_N, width_1, out_BW, out_BW.stride(0), COLUMNS=COLUMNS, num_warps=2, **overlapped()
        )


@triton.jit(do_not_specialize=["out_stride"])
def spread_rows(packed_ptr, width_ptr, out_ptr, out_stride, COLUMNS: tl.constexpr):
    after_previous()
    row = tl.program_id(0).to(tl.int64)
    width = tl.load(width_ptr)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(packed_ptr + row * width + column, mask=column < width)
        tl.store(out_ptr + row * out_stride + column, x, mask=column < width)
