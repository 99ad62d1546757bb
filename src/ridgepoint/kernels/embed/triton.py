# mypy: disallow-untyped-defs=False
"""`embed` on a GPU: rows gathered, scaled and rounded in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.embed import cpu
from ridgepoint.kernels.triton_call import after_previous, overlapped, takes

WIDTH = 1024


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    plain = dtype == torch.bfloat16 and table_VD.is_contiguous() and ids_T.is_contiguous()
    if not plain or not takes(table_VD):
        return cpu.embed(ids_T, table_VD, scale, dtype)
    width = table_VD.shape[1]
    out_TD = table_VD.new_empty(len(ids_T), width)
    if out_TD.numel() == 0:
        return out_TD
    block = min(WIDTH, triton.next_power_of_2(width))
    _embed[(len(ids_T), triton.cdiv(width, block))](ids_T, table_VD, out_TD, scale, width, block, **overlapped())
    return out_TD


@triton.jit
def _embed(ids, table, out, scale, width, BLOCK: tl.constexpr):
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    row = tl.load(ids + token).to(tl.int64)
    x = tl.load(table + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + column, (x * scale).to(out.dtype.element_ty), mask=inside)
