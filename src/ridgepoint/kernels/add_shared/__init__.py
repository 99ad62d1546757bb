"""The shared expert joins the routed ones, optionally scaled by the sigmoid of its gate."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.moe_experts.unsummed import Delta


def add_shared(routed_TD: Delta, shared_TD: torch.Tensor, gate_logit_T1: torch.Tensor | None) -> torch.Tensor:
    """`routed + sigmoid(gate) * shared` (or plainly `routed + shared` for a model without the gate). Rows come unsummed only from
    experts of the same path."""
    out: torch.Tensor = implementation("add_shared", shared_TD).add_shared(routed_TD, shared_TD, gate_logit_T1)
    return out
