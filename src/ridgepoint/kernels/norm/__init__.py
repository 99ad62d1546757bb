"""Normalisation, alone or fused with the residual addition that precedes it.

Statistics are float32 whatever the input; the output has the input's type. The `add_` forms return the new residual
stream and its normalised copy, because every block needs both.
"""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.moe_experts.unsummed import Delta


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis (any leading axes; rows may be strided)."""
    out: torch.Tensor = implementation("norm", x).rms_norm(x, weight, eps)
    return out


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last axis."""
    out: torch.Tensor = implementation("norm", x).layer_norm(x, weight, bias, eps)
    return out


def add_rms_norm(
    x_TD: torch.Tensor, delta_TD: Delta, scale: float, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`r = x + scale * delta`; returns `(r, rms_norm(r))`. Rows come unsummed only from experts of the same path."""
    out: tuple[torch.Tensor, torch.Tensor] = implementation("norm", x_TD).add_rms_norm(
        x_TD, delta_TD, scale, weight_D, eps
    )
    return out


def add_layer_norm(
    x_TD: torch.Tensor, delta_TD: Delta, scale: float, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`r = x + scale * delta`; returns `(r, layer_norm(r))`."""
    out: tuple[torch.Tensor, torch.Tensor] = implementation("norm", x_TD).add_layer_norm(
        x_TD, delta_TD, scale, weight_D, bias_D, eps
    )
    return out
