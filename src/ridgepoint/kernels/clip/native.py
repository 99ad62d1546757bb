"""Elementwise scaling and clipping by the native kernels: one operator behind `clip` and `scale`."""

from __future__ import annotations

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, rows


def scaled_and_clipped(x_TI: torch.Tensor, scale: float, limit: float) -> torch.Tensor:
    """`min(max(scale * x, -limit), limit)`."""
    x_TI = rows(x_TI)
    y_TI = empty(*x_TI.shape, dtype=x_TI.dtype)
    call(
        native.MapOp, x_TI.shape[0], x=address(x_TI), y=address(y_TI), width=x_TI.shape[1], x_stride=x_TI.stride(0),
        y_stride=y_TI.stride(0), dtype=DTYPES[x_TI.dtype], scale=scale, limit=limit,
    )  # fmt: skip
    return y_TI
