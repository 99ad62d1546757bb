"""`clip` in torch ops."""

from __future__ import annotations

import torch


def clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x.clamp(-limit, limit)
