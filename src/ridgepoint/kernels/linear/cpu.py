"""The products through torch's BLAS."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear(x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if w_OI.dtype != x_TI.dtype:
        w_OI = w_OI.to(x_TI.dtype)
        bias_O = None if bias_O is None else bias_O.to(x_TI.dtype)
    return F.linear(x_TI, w_OI, bias_O)


def linear_f32(x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if w_OI.dtype == torch.float32:
        return F.linear(x_TI.float(), w_OI, bias_O)
    return linear(x_TI, w_OI, bias_O).float()


def linear_heads(x_THI: torch.Tensor, w_HOI: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x_THI.transpose(0, 1), w_HOI.to(x_THI.dtype).transpose(1, 2)).transpose(0, 1)
