# mypy: disallow-untyped-defs=False
"""`embed` on GPUs: one launch for lookup, scale and type."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.embed import cpu
from ridgepoint.kernels.triton_call import on_device, wants_gradient

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
CHANNELS = 1024


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    floats = dtype in FLOATS and table_VD.dtype in FLOATS and table_VD.stride(1) == 1
    if not floats or not on_device(ids_T, table_VD) or wants_gradient(table_VD):
        return cpu.embed(ids_T, table_VD, scale, dtype)
    num_tokens, width = ids_T.shape[0], table_VD.shape[1]
    x_TD = torch.empty(num_tokens, width, dtype=dtype, device=table_VD.device)
    if x_TD.numel():
        block = min(CHANNELS, triton.next_power_of_2(width))
        embed_rows[(num_tokens, triton.cdiv(width, block))](
            ids_T, table_VD, x_TD, table_VD.stride(0), scale, WIDTH=width, BLOCK=block
        )
    return x_TD


@triton.jit
def embed_rows(ids_ptr, table_ptr, x_ptr, stride, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Program (t, block). Products are rounded to the output's type as torch does: first the row, then its multiple."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + t) * stride
    x = tl.load(table_ptr + row + d, mask=d < WIDTH, other=0).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + t * WIDTH + d, (x.to(tl.float32) * scale).to(x_ptr.dtype.element_ty), mask=d < WIDTH)
