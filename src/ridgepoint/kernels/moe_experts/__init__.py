"""All routed experts of one layer: every token through its K experts, weighted and summed."""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.moe_experts.unsummed import Delta


def moe_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: torch.Tensor | Any,
    w_down_EDF: torch.Tensor | Any,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> torch.Tensor:
    """`y[t] = sum_k weights[t, k] * (w_down[e] @ act(w_gate_up[e] @ x[t] + b) + b')` with `e = expert_ids[t, k]`.

    Gate rows come before up rows. Weights are torch tensors (wider ones are cast to the activation's type) or packed.
    Differentiable in `x`, `weights` and every parameter on the torch paths.
    """
    out: torch.Tensor = implementation("moe_experts", x_TD).moe_experts(
        x_TD, weights_TK, expert_ids_TK, w_gate_up_E2FD, w_down_EDF, activation, bias_gate_up_E2F, bias_down_ED
    )
    return out


def expert_rows(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    w_gate_up_E2FD: torch.Tensor | Any,
    w_down_EDF: torch.Tensor | Any,
    activation: Activation,
    bias_gate_up_E2F: torch.Tensor | None = None,
    bias_down_ED: torch.Tensor | None = None,
) -> Delta:
    """`moe_experts` for who adds the result to the residual stream: the path may leave a token's rows to that addition to sum."""
    path = implementation("moe_experts", x_TD)
    compute = getattr(path, "expert_rows", path.moe_experts)
    out: Delta = compute(
        x_TD, weights_TK, expert_ids_TK, w_gate_up_E2FD, w_down_EDF, activation, bias_gate_up_E2F, bias_down_ED
    )
    return out
