"""Definition of spreading."""

from __future__ import annotations

import torch


def spread(packed_N: torch.Tensor, width_1: torch.Tensor, out_BW: torch.Tensor) -> None:
    width = int(width_1)
    for b in range(len(out_BW)):
        out_BW[b, :width] = packed_N[b * width : (b + 1) * width]
