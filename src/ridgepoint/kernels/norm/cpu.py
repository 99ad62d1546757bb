"""The norms by the native kernels where they can serve, else in torch's own fused ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.kernels.norm import native
from ridgepoint.kernels.tensor_call import takes


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if takes(x, weight):
        return native.norm(x, weight, None, eps)[1]
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    if takes(x, weight, bias):
        return native.norm(x, weight, bias, eps)[1]
    return F.layer_norm(x, (x.shape[-1],), weight.to(x.dtype), bias.to(x.dtype), eps)


def add_rms_norm(
    x_TD: torch.Tensor, delta_TD: torch.Tensor, scale: float, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if takes(x_TD, delta_TD, weight_D):
        return native.norm(x_TD, weight_D, None, eps, delta_TD, scale)
    r_TD = torch.add(x_TD, delta_TD, alpha=scale)
    return r_TD, rms_norm(r_TD, weight_D, eps)


def add_layer_norm(
    x_TD: torch.Tensor, delta_TD: torch.Tensor, scale: float, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if takes(x_TD, delta_TD, weight_D, bias_D):
        return native.norm(x_TD, weight_D, bias_D, eps, delta_TD, scale)
    r_TD = torch.add(x_TD, delta_TD, alpha=scale)
    return r_TD, layer_norm(r_TD, weight_D, bias_D, eps)
