"""Routed experts by the native kernels: packed weights only."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.tensor_call import DTYPES, address, call, copied, empty, rows, takes


def activation_fields(activation: Activation) -> dict[str, float]:
    if isinstance(activation, ClampedSwiGlu):
        return {"activation": 1, "alpha": activation.alpha, "limit": activation.limit}
    return {"activation": 0}


def moe_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    gate_up: Packed,
    down: Packed,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> torch.Tensor:
    if not takes(x_TD) or (x_TD.dtype == torch.float32 and gate_up.format != "f32"):
        raise ConfigError(
            f"packed {gate_up.format} experts cannot take {x_TD.dtype} activations",
            hint="packed weights serve inference on the CPU, in the type they were packed for",
        )
    x_TD, y_TD = rows(x_TD), empty(*x_TD.shape, dtype=x_TD.dtype)
    weights_TK, expert_ids_TK = _plain(weights_TK, torch.float32), _plain(expert_ids_TK, torch.int64)
    biases = [None if bias is None else _plain(bias, torch.float32) for bias in (bias_gate_up_E2F, bias_down_ED)]
    call(
        native.MoeOp, x_TD.shape[0], keep=(gate_up, down), gate_up=gate_up.address, down=down.address, x=address(x_TD),
        y=address(y_TD), weights=address(weights_TK), expert_ids=address(expert_ids_TK), bias_gate_up=address(biases[0]),
        bias_down=address(biases[1]), x_stride=x_TD.stride(0), y_stride=y_TD.stride(0), top_k=weights_TK.shape[1],
        x_dtype=DTYPES[x_TD.dtype], y_dtype=DTYPES[y_TD.dtype], **activation_fields(activation),
    )  # fmt: skip
    return y_TD


def _plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    return copied(tensor.to(dtype).contiguous(), "an argument of moe_experts")
