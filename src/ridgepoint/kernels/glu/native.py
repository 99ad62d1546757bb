"""The gated activations by the native kernels."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, rows


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    x, width = rows(gate_up_T2F), gate_up_T2F.shape[1] // 2
    y_TF = empty(x.shape[0], width, dtype=x.dtype)
    clamped = (
        {"activation": 1, "alpha": activation.alpha, "limit": activation.limit}
        if isinstance(activation, ClampedSwiGlu)
        else {"activation": 0}
    )
    call(
        native.GluOp, x.shape[0], x=address(x), y=address(y_TF), width=width, x_stride=x.stride(0),
        y_stride=y_TF.stride(0), dtype=DTYPES[x.dtype], **clamped,
    )  # fmt: skip
    return y_TF
