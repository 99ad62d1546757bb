"""The products through torch's BLAS, or through the native kernels where the weight is packed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.kernels.linear import native
from ridgepoint.kernels.packed import Packed


def linear(x_TI: torch.Tensor, w_OI: torch.Tensor | Packed, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if isinstance(w_OI, Packed):
        return native.linear(x_TI, w_OI, bias_O, x_TI.dtype)
    if w_OI.dtype != x_TI.dtype:
        w_OI = w_OI.to(x_TI.dtype)
        bias_O = None if bias_O is None else bias_O.to(x_TI.dtype)
    return F.linear(x_TI, w_OI, bias_O)


def linear_f32(x_TI: torch.Tensor, w_OI: torch.Tensor | Packed, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    if isinstance(w_OI, Packed):
        return native.linear(x_TI, w_OI, bias_O, torch.float32)
    if w_OI.dtype == torch.float32:
        return F.linear(x_TI.float(), w_OI, bias_O)
    return linear(x_TI, w_OI, bias_O).float()


def linear_heads(x_THI: torch.Tensor, w_HOI: torch.Tensor | Packed) -> torch.Tensor:
    if isinstance(w_HOI, Packed):
        return native.linear_heads(x_THI, w_HOI)
    return torch.bmm(x_THI.transpose(0, 1), w_HOI.to(x_THI.dtype).transpose(1, 2)).transpose(0, 1)
