"""Clipping of projections (OLMoE, DBRX)."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation


def clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    """`min(max(x, -limit), limit)`."""
    out: torch.Tensor = implementation("clip", x).clip(x, limit)
    return out
