"""The gated activations by the native kernels where they can serve, else in torch ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.kernels.glu import native, reference
from ridgepoint.kernels.tensor_call import takes


def glu(gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
    if gate_up_T2F.dim() == 2 and takes(gate_up_T2F):
        return native.glu(gate_up_T2F, activation)
    if isinstance(activation, ClampedSwiGlu):
        return reference.glu(gate_up_T2F, activation)
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    return F.silu(gate) * up
