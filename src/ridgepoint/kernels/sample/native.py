"""Sampling of a whole step by one native call, rows shared between the threads of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ridgepoint.kernels.sample.rows import SampledRows

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Edits, Scores, Shaping


def draw(
    logits_RV: torch.Tensor, shaping: Shaping | None, edits_R: list[Edits | None], num_top_R: list[int | None]
) -> tuple[list[int], list[Scores | None]]:
    sampled = SampledRows(*logits_RV.shape)
    if shaping is not None:
        sampled.shape(shaping)
    for row, (edits, num_top) in enumerate(zip(edits_R, num_top_R, strict=True)):
        if edits is not None:
            sampled.edit(row, edits)
        if num_top is not None:
            sampled.score(row, num_top)
    sampled.draw(logits_RV)
    return sampled.found(len(logits_RV))
