"""Rotary frequencies from a `RopeSpec`: the scalings of linear, Llama 3, YaRN and LongRoPE.

Frequencies are float32 and in the order of operations their authors used, because models were trained on those bits.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ridgepoint.catalog.spec import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling
from ridgepoint.kernels.rope import rope_tables


class Rotary(nn.Module):
    """`cos` and `sin` for the positions of a step. `max_context` picks LongRoPE's factors: beyond the original
    context the whole model uses the long ones, so that cached keys never change meaning."""

    inv_freq_F: torch.Tensor

    def __init__(self, spec: RopeSpec, max_context: int, *, device: torch.device | str) -> None:
        super().__init__()
        self.spec, self.max_context = spec, max_context
        self.register_buffer("inv_freq_F", torch.empty(0), persistent=False)
        self.magnitude = 1.0
        self.reset(device)

    def reset(self, device: torch.device | str) -> None:
        """Compute the frequencies on `device` (again, when a model built on `meta` becomes real)."""
        inv_freq_F, self.magnitude = frequencies(self.spec, self.max_context)
        self.inv_freq_F = inv_freq_F.to(device)

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rope_tables(positions_T, self.inv_freq_F, self.magnitude)


def frequencies(spec: RopeSpec, max_context: int) -> tuple[torch.Tensor, float]:
    """`(inv_freq_F, magnitude)`; F is half the rotary width."""
    exponent_F = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    base_F = spec.theta**exponent_F
    scaling = spec.scaling
    if scaling is None:
        return 1.0 / base_F, 1.0
    if isinstance(scaling, LinearScaling):
        return 1.0 / base_F / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(1.0 / base_F, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(base_F, spec, scaling), scaling.attention_factor
    long = max_context > scaling.original_max_context
    factors = scaling.long_factors if long else scaling.short_factors
    magnitude = scaling.long_magnitude if long else scaling.short_magnitude
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * base_F), magnitude


def _llama3(inv_freq_F: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelength_F = 2 * math.pi / inv_freq_F
    longest_kept = scaling.original_max_context / scaling.high_freq_factor
    shortest_scaled = scaling.original_max_context / scaling.low_freq_factor
    blend_F = (scaling.original_max_context / wavelength_F - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between_F = (1 - blend_F) * inv_freq_F / scaling.factor + blend_F * inv_freq_F
    out_F = torch.where(wavelength_F > shortest_scaled, inv_freq_F / scaling.factor, between_F)
    return torch.where(wavelength_F < longest_kept, inv_freq_F, out_F)


def _yarn(base_F: torch.Tensor, spec: RopeSpec, scaling: YarnScaling) -> torch.Tensor:
    """Frequencies that turn more than `beta_fast` times in the original context stay, those that turn less than
    `beta_slow` times are divided by `factor`, with a linear ramp between."""

    def channel(turns: float) -> float:
        ratio = scaling.original_max_context / (turns * 2 * math.pi)
        return spec.rotary_dim * math.log(ratio) / (2 * math.log(spec.theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    high = high + 0.001 if low == high else high
    ramp_F = ((torch.arange(len(base_F), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep_F = 1 - ramp_F
    return 1.0 / (scaling.factor * base_F) * (1 - keep_F) + 1.0 / base_F * keep_F
