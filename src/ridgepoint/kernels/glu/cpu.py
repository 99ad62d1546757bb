"""The gated activations in torch ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.kernels.glu import reference


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    if isinstance(activation, ClampedSwiGlu):
        return reference.glu(gate_up_T2F, activation)
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    return F.silu(gate) * up
