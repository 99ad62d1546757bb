"""Which experts a token visits and how much each counts."""

from __future__ import annotations

import torch

from ridgepoint.catalog.spec import RouterSpec
from ridgepoint.kernels.dispatch import implementation


def route(
    logits_TE: torch.Tensor, correction_E: torch.Tensor | None, router: RouterSpec, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `weights_TK` (float32, differentiable in the logits) and `expert_ids_TK` (int64).

    Best expert first; equal scores go to the lower id, so the choice never depends on the batch. The correction bias
    moves the choice and never the weight.
    """
    out: tuple[torch.Tensor, torch.Tensor] = implementation("route", logits_TE).route(
        logits_TE, correction_E, router, top_k
    )
    return out
