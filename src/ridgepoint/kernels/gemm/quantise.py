# mypy: disallow-untyped-defs=False
"""Activations as fp8 codes, one float32 scale per row and 128 inputs, as checkpoints of DeepSeek's kind expect them.

The largest magnitude of a group becomes 448, chosen from the row alone, so that a token's result stays its own. Codes lie in
the order that `device_weight` gives the codes of weights: a product does not ask which order, only that both have the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import after_previous, overlapped

GROUP = 128
LARGEST = tl.constexpr(448.0)
ROWS = 8  # rounded by one program


def quantise_rows(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, inputs padded to whole groups] and scales [groups, rows]."""
    num_rows, inputs = x_TI.shape
    groups = triton.cdiv(inputs, GROUP)
    codes = torch.empty(num_rows, groups * GROUP, dtype=torch.float8_e4m3fn, device=x_TI.device)
    scales = torch.empty(groups, num_rows, dtype=torch.float32, device=x_TI.device)
    _quantise[(triton.cdiv(num_rows, ROWS), groups)](
        x_TI,
        x_TI.stride(0),
        codes,
        scales,
        num_rows,
        inputs,
        ROWS=ROWS,
        GROUP=GROUP,
        num_warps=1,
        **overlapped(),
    )
    return codes, scales


def rounded_rows(x_TI: torch.Tensor) -> torch.Tensor:
    """The numbers that `quantise_rows` keeps, float32, in the plain order: the slow twin."""
    x = x_TI.float()
    grouped = torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    scale = grouped.abs().amax(-1, keepdim=True) / LARGEST.value
    codes = (grouped / torch.where(scale > 0, scale, 1.0)).to(torch.float8_e4m3fn).float()
    return (codes * scale).flatten(-2)[..., : x.shape[-1]]


@triton.jit
def plain_place(p):
    """Which of 128 inputs lies at byte `p`: bits q q s s s h b there are s s s h q q b in the plain order."""
    return (p >> 2 & 7) * 16 + (p >> 1 & 1) * 8 + (p >> 5) * 2 + (p & 1)


@triton.jit(do_not_specialize=["num_rows"])
def _quantise(x, stride, codes, scales, num_rows, inputs, ROWS: tl.constexpr, GROUP: tl.constexpr):
    after_previous()
    group = tl.program_id(1)
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    p_P = tl.arange(0, GROUP)
    at_P = group * GROUP + plain_place(p_P)
    live_RP = (row_R < num_rows)[:, None] & (at_P < inputs)[None, :]
    x_RP = tl.load(x + row_R[:, None] * stride + at_P[None, :], mask=live_RP, other=0.0).to(tl.float32)
    scale_R = tl.max(tl.abs(x_RP), 1) / LARGEST
    code_RP = (x_RP / tl.where(scale_R > 0, scale_R, 1.0)[:, None]).to(tl.float8e4nv)
    place_RP = row_R[:, None] * (tl.num_programs(1) * GROUP) + (group * GROUP + p_P)[None, :]
    tl.store(codes + place_RP, code_RP, mask=(row_R < num_rows)[:, None])
    tl.store(scales + group.to(tl.int64) * num_rows + row_R, scale_R, mask=row_R < num_rows)
