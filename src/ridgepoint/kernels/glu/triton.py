# mypy: disallow-untyped-defs=False
"""The gated activations on a GPU, of a projection that no product kernel of ours made (theirs apply it as they store)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.kernels.gemm.tiles import gated
from ridgepoint.kernels.glu import cpu
from ridgepoint.kernels.triton_call import after_previous, overlapped, takes

WIDTH = 1024


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    if gate_up_T2F.dim() != 2 or gate_up_T2F.stride(1) != 1 or not takes(gate_up_T2F):
        return cpu.glu(gate_up_T2F, activation)
    num_tokens, features = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out_TF = gate_up_T2F.new_empty(num_tokens, features)
    if out_TF.numel() == 0:
        return out_TF
    clamped = isinstance(activation, ClampedSwiGlu)
    alpha, limit = (activation.alpha, activation.limit) if isinstance(activation, ClampedSwiGlu) else (0.0, 0.0)
    block = min(WIDTH, triton.next_power_of_2(features))
    _glu[(num_tokens, triton.cdiv(features, block))](
        gate_up_T2F,
        gate_up_T2F.stride(0),
        out_TF,
        features,
        alpha,
        limit,
        "clamped" if clamped else "silu",
        block,
        **overlapped(),
    )
    return out_TF


@triton.jit
def _glu(gate_up, stride, out, features, alpha, limit, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < features
    at = gate_up + token * stride + feature
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + features, mask=inside, other=0.0).to(tl.float32)
    y = gated(gate, up, ACTIVATION, alpha, limit)
    tl.store(out + token * features + feature, y.to(out.dtype.element_ty), mask=inside)
