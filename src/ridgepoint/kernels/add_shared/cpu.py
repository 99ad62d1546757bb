"""`add_shared` by the native kernels where they can serve, else in torch ops."""

from __future__ import annotations

import torch

from ridgepoint.kernels.add_shared import native
from ridgepoint.kernels.tensor_call import takes


def add_shared(routed_TD: torch.Tensor, shared_TD: torch.Tensor, gate_logit_T1: torch.Tensor | None) -> torch.Tensor:
    if takes(routed_TD, shared_TD, gate_logit_T1):
        return native.add_shared(routed_TD, shared_TD, gate_logit_T1)
    if gate_logit_T1 is None:
        return routed_TD + shared_TD
    return torch.addcmul(routed_TD, torch.sigmoid(gate_logit_T1), shared_TD)
