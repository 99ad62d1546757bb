# mypy: disallow-untyped-defs=False
"""`add_shared` on a GPU, in one pass, which sums what routed experts left unsummed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.add_shared import cpu
from ridgepoint.kernels.gemm.tiles import sigmoid
from ridgepoint.kernels.moe_experts.combine import rows_of, sum_of, sum_of_token, summed
from ridgepoint.kernels.moe_experts.unsummed import Delta
from ridgepoint.kernels.triton_call import after_previous, overlapped, takes

WIDTH = 1024


def add_shared(routed_TD: Delta, shared_TD: torch.Tensor, gate_logit_T1: torch.Tensor | None) -> torch.Tensor:
    routed = rows_of(routed_TD)
    plain = routed.is_contiguous() and shared_TD.is_contiguous() and routed.dim() == 2
    if not plain or not takes(routed, shared_TD, gate_logit_T1):
        return cpu.add_shared(summed(routed_TD), shared_TD, gate_logit_T1)
    out_TD = torch.empty_like(shared_TD)
    num_tokens, width = shared_TD.shape
    if out_TD.numel() == 0:
        return out_TD
    block = min(WIDTH, triton.next_power_of_2(width))
    stride = 0 if gate_logit_T1 is None else gate_logit_T1.stride(0)
    _add_shared[(num_tokens, triton.cdiv(width, block))](
        routed, shared_TD, gate_logit_T1, stride, out_TD, *sum_of(routed_TD), width, block, **overlapped()
    )
    return out_TD


@triton.jit
def _add_shared(
    routed, shared, gate, gate_stride, out, weights, pair_row, TOP_K: tl.constexpr, width, BLOCK: tl.constexpr
):
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = token * width + column
    y = tl.load(shared + at, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        y *= sigmoid(tl.load(gate + token * gate_stride).to(tl.float32))
    if TOP_K > 0:
        sum_ = sum_of_token(routed, weights, pair_row, token, width, column, inside, TOP_K, BLOCK)
        y += sum_.to(routed.dtype.element_ty).to(tl.float32)
    else:
        y += tl.load(routed + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
