"""Definition of the gated activations."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    if isinstance(activation, ClampedSwiGlu):
        gate = gate.clamp(max=activation.limit)
        up = up.clamp(-activation.limit, activation.limit)
        return gate * torch.sigmoid(activation.alpha * gate) * (up + 1)
    return gate * torch.sigmoid(gate) * up
