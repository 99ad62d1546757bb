"""Gated activation of a fused gate-and-up projection (gate columns first, then up)."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.kernels.dispatch import implementation


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    """`act(gate) * up`, the activation being a fact of the model (`SwiGlu`, `ClampedSwiGlu`)."""
    out: torch.Tensor = implementation("glu", gate_up_T2F).glu(gate_up_T2F, activation)
    return out
