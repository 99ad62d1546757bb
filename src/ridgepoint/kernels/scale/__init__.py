"""Scaling of logits (Granite)."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation


def scale(x_TI: torch.Tensor, factor: float) -> torch.Tensor:
    """`factor * x`."""
    out: torch.Tensor = implementation("scale", x_TI).scale(x_TI, factor)
    return out
