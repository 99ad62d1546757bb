"""The norms by the native kernels."""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, rows


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    delta: torch.Tensor | None = None,
    delta_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(sum, norm of it)`; the sum is `x` itself without `delta`. Any leading axes."""
    x = rows(x)
    y = empty(*x.shape, dtype=x.dtype)
    total = x
    fields: dict[str, Any] = {}
    if delta is not None:
        delta, total = rows(delta), empty(*x.shape, dtype=x.dtype)
        fields = {
            "delta": address(delta),
            "delta_stride": delta.stride(0),
            "sum": address(total),
            "sum_stride": total.stride(0),
        }
    width = x.shape[-1]
    call(
        native.NormOp, x.shape[0], x=address(x), y=address(y), weight=address(weight), bias=address(bias),
        x_stride=x.stride(0), y_stride=y.stride(0), groups=x[0].numel() // width if x.shape[0] else 1, width=width,
        eps=eps, delta_scale=delta_scale, dtype=DTYPES[x.dtype], mean_centred=bias is not None,
        weight_dtype=DTYPES[weight.dtype], **fields,
    )  # fmt: skip
    return total, y
