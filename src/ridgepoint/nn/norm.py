"""Normalisation layers, alone or after a residual addition."""

from __future__ import annotations

import torch
from torch import nn

from ridgepoint.catalog.spec import NormSpec
from ridgepoint.kernels import norm as op
from ridgepoint.kernels.moe_experts.unsummed import Delta


class Norm(nn.Module):
    """RMS norm (scale) or layer norm (scale and bias), as the spec says."""

    def __init__(self, spec: NormSpec, width: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype, device=device)) if spec.kind == "layer" else None
        self._eps = spec.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return op.rms_norm(x, self.weight, self._eps)
        return op.layer_norm(x, self.weight, self.bias, self._eps)

    def add(self, x_TD: torch.Tensor, delta_TD: Delta, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`(x + scale * delta, its norm)`."""
        if self.bias is None:
            return op.add_rms_norm(x_TD, delta_TD, scale, self.weight, self._eps)
        return op.add_layer_norm(x_TD, delta_TD, scale, self.weight, self.bias, self._eps)
