"""Definition of `scale`."""

from __future__ import annotations

import torch


def scale(x_TI: torch.Tensor, factor: float) -> torch.Tensor:
    return x_TI * factor
