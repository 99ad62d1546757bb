# mypy: disallow-untyped-defs=False
"""The norms on GPUs, each one launch with the addition before it, and with the sum of a token's experts before that: a row is read
once and kept in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.moe_experts.combine import rows_of, sum_of, sum_of_token, summed
from ridgepoint.kernels.moe_experts.unsummed import Delta
from ridgepoint.kernels.norm import cpu
from ridgepoint.kernels.triton_call import after_previous, on_device, overlapped, wants_gradient

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 16384  # channels: a row's tile must stay in registers
TILE = 2048  # channels a program holds when rows are short


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if not _serves(x, weight):
        return cpu.rms_norm(x, weight, eps)
    return _norm(x, None, 1.0, weight, None, eps)[1]


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    if not _serves(x, weight, bias):
        return cpu.layer_norm(x, weight, bias, eps)
    return _norm(x, None, 1.0, weight, bias, eps)[1]


def add_rms_norm(
    x_TD: torch.Tensor, delta_TD: Delta, scale: float, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if not _serves(x_TD, rows_of(delta_TD), weight_D):
        return cpu.add_rms_norm(x_TD, summed(delta_TD), scale, weight_D, eps)
    return _norm(x_TD, delta_TD, scale, weight_D, None, eps)


def add_layer_norm(
    x_TD: torch.Tensor, delta_TD: Delta, scale: float, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if not _serves(x_TD, rows_of(delta_TD), weight_D, bias_D):
        return cpu.add_layer_norm(x_TD, summed(delta_TD), scale, weight_D, bias_D, eps)
    return _norm(x_TD, delta_TD, scale, weight_D, bias_D, eps)


def _serves(*tensors: torch.Tensor) -> bool:
    return (
        all(t.dtype in FLOATS for t in tensors)
        and tensors[0].shape[-1] <= WIDEST
        and on_device(*tensors)
        and not wants_gradient(*tensors)
    )


def _norm(
    x: torch.Tensor,
    delta: Delta | None,
    scale: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(x + scale * delta, its norm)`; without a delta the first is `x`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    r = x if delta is None else torch.empty_like(y)
    if y.numel() == 0:
        return r, y
    width = x.shape[-1]
    x_RIW = _two_axes_of_rows(x)
    delta_RIW = x_RIW if delta is None else _two_axes_of_rows(rows_of(delta))
    inner = x_RIW.shape[1]
    num_rows = x_RIW.shape[0] * inner
    block = triton.next_power_of_2(width)
    weights_TK, pair_row, top_k = sum_of(delta)
    rows = 1 if top_k else max(1, TILE // block)
    norm_rows[(triton.cdiv(num_rows, rows),)](
        x_RIW, delta_RIW, weight, weight if bias is None else bias, r, y, x_RIW.stride(0), x_RIW.stride(1),
        delta_RIW.stride(0), delta_RIW.stride(1), weights_TK, pair_row, num_rows, inner, scale, eps, WIDTH=width, BLOCK=block,
        ROWS=rows, ADD=delta is not None, TOP_K=top_k, CENTRE=bias is not None, num_warps=max(4, min(16, block // 512)),
        **overlapped(),
    )  # fmt: skip
    return r, y


def _two_axes_of_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as [rows, inner rows, width] with contiguous channels; heads of a projection's slice stay where they are."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x if x.dim() == 3 else x[:, None] if x.dim() == 2 else x.reshape(-1, 1, x.shape[-1])


@triton.jit(do_not_specialize=["num_rows"])
def norm_rows(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, r_ptr, y_ptr, x_stride, x_inner_stride, delta_stride, delta_inner_stride,
    sum_weights_ptr, pair_row_ptr, num_rows, inner, scale, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    ADD: tl.constexpr, TOP_K: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """With a TOP_K what is added is a token's sum over `delta_ptr`, as `combine` would have stored it, and ROWS is 1."""
    after_previous()
    row_R = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    w_W = tl.arange(0, BLOCK)
    live_RW = (row_R < num_rows)[:, None] & (w_W < WIDTH)[None, :]
    at_R = row_R // inner * x_stride + row_R % inner * x_inner_stride
    x_RW = tl.load(x_ptr + at_R[:, None] + w_W[None, :], mask=live_RW, other=0).to(tl.float32)
    out_RW = row_R[:, None] * WIDTH + w_W[None, :]
    if ADD:
        if TOP_K > 0:
            token = tl.program_id(0).to(tl.int64)
            sum_W = sum_of_token(
                delta_ptr, sum_weights_ptr, pair_row_ptr, token, delta_stride, w_W, w_W < WIDTH, TOP_K, BLOCK
            )
            delta_RW = sum_W.to(delta_ptr.dtype.element_ty)[None, :].to(tl.float32)
        else:
            at_R = row_R // inner * delta_stride + row_R % inner * delta_inner_stride
            delta_RW = tl.load(delta_ptr + at_R[:, None] + w_W[None, :], mask=live_RW, other=0).to(tl.float32)
        r_RW = (x_RW + scale * delta_RW).to(r_ptr.dtype.element_ty)
        tl.store(r_ptr + out_RW, r_RW, mask=live_RW)
        x_RW = r_RW.to(tl.float32)  # the norm is of the stream as it is stored
    weight_W = tl.load(weight_ptr + w_W, mask=w_W < WIDTH, other=0).to(tl.float32)
    if CENTRE:
        mean_R = tl.sum(x_RW, 1) / WIDTH
        x_RW = tl.where(live_RW, x_RW - mean_R[:, None], 0.0)
    y_RW = x_RW * tl.rsqrt(tl.sum(x_RW * x_RW, 1) / WIDTH + eps)[:, None] * weight_W[None, :]
    if CENTRE:
        y_RW += tl.load(bias_ptr + w_W, mask=w_W < WIDTH, other=0).to(tl.float32)[None, :]
    tl.store(y_ptr + out_RW, y_RW.to(y_ptr.dtype.element_ty), mask=live_RW)
