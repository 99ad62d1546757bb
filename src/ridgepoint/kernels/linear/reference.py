"""Definitions of the products, accumulated in float32 or better and rounded once."""

from __future__ import annotations

import torch


def linear(x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    return _product(x_TI, w_OI, bias_O).to(x_TI.dtype)


def linear_f32(x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    return _product(x_TI, w_OI, bias_O).float()


def linear_heads(x_THI: torch.Tensor, w_HOI: torch.Tensor) -> torch.Tensor:
    heads = [_product(x_THI[:, h], w_HOI[h], None) for h in range(w_HOI.shape[0])]
    return torch.stack(heads, dim=1).to(x_THI.dtype)


def _product(x_TI: torch.Tensor, w_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    wide = torch.float64 if x_TI.dtype == torch.float64 else torch.float32
    y_TO = x_TI.to(wide) @ w_OI.to(wide).T
    return y_TO if bias_O is None else y_TO + bias_O.to(wide)
