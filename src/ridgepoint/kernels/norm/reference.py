"""Definitions of the norms, in float32 (float64 stays float64)."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias).to(x.dtype)


def add_rms_norm(
    x_TD: torch.Tensor, delta_TD: torch.Tensor, scale: float, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r_TD = x_TD + delta_TD * scale
    return r_TD, rms_norm(r_TD, weight_D, eps)


def add_layer_norm(
    x_TD: torch.Tensor, delta_TD: torch.Tensor, scale: float, weight_D: torch.Tensor, bias_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r_TD = x_TD + delta_TD * scale
    return r_TD, layer_norm(r_TD, weight_D, bias_D, eps)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
