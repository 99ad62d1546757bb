"""Spreading in torch ops, without a word to the host."""

from __future__ import annotations

import torch


def spread(packed_N: torch.Tensor, width_1: torch.Tensor, out_BW: torch.Tensor) -> None:
    num_rows, columns = out_BW.shape
    column_W = torch.arange(columns, device=out_BW.device)
    at_BW = torch.arange(num_rows, device=out_BW.device)[:, None] * width_1 + column_W
    there_BW = packed_N.take(at_BW.clamp(max=len(packed_N) - 1))
    out_BW.copy_(torch.where(column_W < width_1, there_BW, out_BW))
