"""Definition of `clip`."""

from __future__ import annotations

import torch


def clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, torch.full_like(x, -limit)), torch.full_like(x, limit))
