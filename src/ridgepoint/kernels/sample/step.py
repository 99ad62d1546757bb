"""A whole step by the three functions on rows, whichever path they come from: the slow twin of the native call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Edits, Scores, Shaping


class RowFunctions(Protocol):
    def choose(self, logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor: ...

    def penalise(
        self,
        logits_V: torch.Tensor,
        ids_N: np.ndarray,
        output_counts_N: np.ndarray,
        repetition: float,
        presence: float,
        frequency: float,
    ) -> None: ...

    def log_probabilities(self, logits_V: torch.Tensor, token_id: int, num_top: int) -> Scores: ...


def draw(
    path: RowFunctions,
    logits_RV: torch.Tensor,
    shaping: Shaping | None,
    edits_R: list[Edits | None],
    num_top_R: list[int | None],
) -> tuple[list[int], list[Scores | None]]:
    """`sample.draw` by `path`."""
    scored = {r: num_top for r, num_top in enumerate(num_top_R) if num_top is not None}
    raw = {r: logits_RV[r].clone() if edits_R[r] is not None else logits_RV[r] for r in scored}
    for logits_V, edits in zip(logits_RV, edits_R, strict=True):
        if edits is not None:
            _edit(path, logits_V, edits)
    token_ids: list[int] = path.choose(logits_RV, shaping).tolist()
    scores: list[Scores | None] = [None] * len(token_ids)
    for r, num_top in scored.items():
        if token_ids[r] >= 0:
            scores[r] = path.log_probabilities(raw[r], token_ids[r], num_top)
    return token_ids, scores


def _edit(path: RowFunctions, logits_V: torch.Tensor, edits: Edits) -> None:
    if len(edits.seen_N):
        path.penalise(logits_V, edits.seen_N, edits.output_counts_N, edits.repetition, edits.presence, edits.frequency)
    if len(edits.added_A):
        at = torch.from_numpy(edits.added_A).to(logits_V.device)
        logits_V[at] += torch.from_numpy(edits.addends_A).to(logits_V.device)
