"""Definition of `add_shared`."""

from __future__ import annotations

import torch


def add_shared(routed_TD: torch.Tensor, shared_TD: torch.Tensor, gate_logit_T1: torch.Tensor | None) -> torch.Tensor:
    if gate_logit_T1 is None:
        return routed_TD + shared_TD
    return routed_TD + torch.sigmoid(gate_logit_T1) * shared_TD
