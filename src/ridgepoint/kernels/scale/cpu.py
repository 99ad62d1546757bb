"""Scaling by the native kernels where they can serve, else by torch."""

from __future__ import annotations

import torch

from ridgepoint.kernels.scale import native, reference
from ridgepoint.kernels.tensor_call import takes


def scale(x_TI: torch.Tensor, factor: float) -> torch.Tensor:
    return native.scale(x_TI, factor) if x_TI.dim() == 2 and takes(x_TI) else reference.scale(x_TI, factor)
