"""Layers that own weights. A loader may swap any weight for a packed one; the op behind the layer reads both."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.linear import linear, linear_f32


def replace_weight(module: nn.Module, name: str, packed: Any) -> None:
    """Put `packed` where the parameter `name` was; the parameter's memory is released."""
    if name not in module._parameters:
        raise AttributeError(f"{type(module).__name__} has no parameter {name!r}")
    del module._parameters[name]
    object.__setattr__(module, name, packed)


def parameter(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device))


class Linear(nn.Module):
    """`x @ weight.T + bias`; with `f32` the result is float32 (routers and heads)."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str,
        f32: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(num_out, dtype=dtype, device=device)) if bias else None
        self._op = linear_f32 if f32 else linear

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        return self._op(x_TI, self.weight, self.bias)


class Embedding(nn.Module):
    """Token ids to `scale` times their rows, in `out_dtype`."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        scale: float,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model, dtype=dtype, device=device))
        self._scale, self._out_dtype = scale, out_dtype

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        return embed(ids_T, self.weight, self._scale, self._out_dtype)
