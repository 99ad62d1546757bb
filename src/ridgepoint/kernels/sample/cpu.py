"""Sampling on CPUs: a whole step by the native kernels where they can serve, else torch's softmax over all rows at once,
then numpy on one row after the other.

A row is looked at alone, so neighbours cannot matter. Sorting is the dear part, so only tokens near the best are sorted
unless those turn out not to be enough. Tensors on other devices go through `torch_ops`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels.sample import native, step, torch_ops
from ridgepoint.kernels.sample.torch_ops import choose_on_device as choose_on_device
from ridgepoint.kernels.sample.torch_ops import count_on_device as count_on_device
from ridgepoint.kernels.sample.torch_ops import edit_on_device as edit_on_device
from ridgepoint.kernels.sample.torch_ops import probabilities
from ridgepoint.kernels.sample.torch_ops import score_on_device as score_on_device
from ridgepoint.kernels.tensor_call import takes

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Edits, Scores, Shaping

NEAR = np.float32(2.0**-14)  # of the best probability: usually a few hundred tokens, and nearly all of the mass
CHUNK = 128  # tokens whose mass is summed first, so that a draw passes over most of the row in one sweep


def draw(
    logits_RV: torch.Tensor, shaping: Shaping | None, edits_R: list[Edits | None], num_top_R: list[int | None]
) -> tuple[list[int], list[Scores | None]]:
    if logits_RV.dtype == torch.float32 and takes(logits_RV):
        return native.draw(logits_RV, shaping, edits_R, num_top_R)
    return step.draw(sys.modules[__name__], logits_RV, shaping, edits_R, num_top_R)


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    if logits_RV.device.type != "cpu":
        return torch_ops.choose(logits_RV, shaping)
    rows = logits_RV.numpy()
    ids_R = rows.argmax(1)  # numpy's takes a tenth of the time of torch's, and finds a NaN if there is one
    finite_R = np.isfinite(rows[np.arange(len(rows)), ids_R])
    if shaping is not None:
        drawn = np.flatnonzero((shaping.temperature_R != 0) & finite_R)
        if len(drawn):
            picked = logits_RV if len(drawn) == len(rows) else logits_RV[torch.from_numpy(drawn)]
            probs = probabilities(picked, shaping.temperature_R[drawn])
            sums_RC = chunk_sums(probs)
            for probs_V, sums_C, r in zip(probs.numpy(), sums_RC, drawn.tolist(), strict=True):
                top_k = int(shaping.top_k_R[r])
                limit = top_k if 0 < top_k < len(probs_V) else len(probs_V)
                top_p, min_p, uniform = shaping.top_p_R[r], shaping.min_p_R[r], shaping.uniform_R[r]
                if limit == len(probs_V) and top_p >= 1 and min_p <= 0:
                    ids_R[r] = _draw(probs_V, sums_C, uniform)
                else:
                    ids_R[r] = _draw_cut(probs_V, sums_C[-1], limit, top_p, min_p, uniform)
    return torch.from_numpy(np.where(finite_R, ids_R, -1))


def chunk_sums(probs_RV: torch.Tensor) -> np.ndarray:
    """Cumulative mass at the end of each chunk of each row, float64; the last chunk may be short."""
    whole = probs_RV.shape[1] // CHUNK * CHUNK
    sums = probs_RV[:, :whole].unflatten(1, (-1, CHUNK)).sum(-1).numpy() if whole else np.zeros((len(probs_RV), 0))
    if whole < probs_RV.shape[1]:
        sums = np.concatenate((sums, probs_RV[:, whole:].numpy().sum(1, keepdims=True)), axis=1)
    return sums.cumsum(1, dtype=np.float64)


def _draw(probs_V: np.ndarray, sums_C: np.ndarray, uniform: float) -> int:
    """The first token whose cumulative mass passes `uniform` of the whole."""
    goal = uniform * sums_C[-1]
    chunk = int(sums_C.searchsorted(goal, side="right"))
    start = chunk * CHUNK
    inside = probs_V[start : start + CHUNK].cumsum(dtype=np.float64)
    place = int(inside.searchsorted(goal - (sums_C[chunk - 1] if chunk else 0.0), side="right"))
    if place == len(inside):  # the chunk's own sum was rounded up
        place = int(np.flatnonzero(probs_V[start : start + CHUNK])[-1])
    return start + place


def _draw_cut(probs_V: np.ndarray, whole: float, limit: int, top_p: float, min_p: float, uniform: float) -> int:
    """As `_draw`, among the `limit` best, of those the nucleus of `top_p`, and none below `min_p` of the best."""
    best = probs_V.max()
    for least in (best * NEAR, np.float32(0.0)):
        ids_N = np.flatnonzero(probs_V >= least)
        probs_N = probs_V[ids_N]
        floor = np.float32(min_p) * best
        if limit < len(probs_V) or top_p < 1:
            cut = _floor(probs_N, len(probs_V), whole, limit, top_p)
            if cut is None:
                continue
            floor = max(floor, cut)
        if floor >= least:
            break
    kept = probs_N >= floor
    cdf_N = probs_N[kept].cumsum(dtype=np.float64)
    return int(ids_N[kept][cdf_N.searchsorted(uniform * cdf_N[-1], side="right")])


def _floor(probs_N: np.ndarray, vocab: int, whole: float, limit: int, top_p: float) -> np.float32 | None:
    """The smallest probability of the shortest run of best tokens that holds `top_p` of the mass of the `limit` best.

    `probs_N` are all of `vocab` tokens above some bound; None when they are too few to tell. `whole` is all tokens' mass.
    """
    count, limited = len(probs_N), limit < vocab
    if count < limit and limited:
        return None
    if limit < count:
        probs_N = np.partition(probs_N, count - limit)[count - limit :]
    if top_p >= 1:
        return probs_N.min()
    ranked_N = np.sort(probs_N)[::-1]
    sums_N = ranked_N.cumsum(dtype=np.float64)
    goal = top_p * (float(sums_N[-1]) if limited else whole)
    if sums_N[-1] < goal and count < vocab:
        return None
    # Sums in another order may end a rounding below the goal: the last one is then the floor.
    return ranked_N[min(int(sums_N.searchsorted(goal)), len(ranked_N) - 1)]


def penalise(
    logits_V: torch.Tensor,
    ids_N: np.ndarray,
    output_counts_N: np.ndarray,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    if logits_V.device.type != "cpu":
        torch_ops.penalise(logits_V, ids_N, output_counts_N, repetition, presence, frequency)
        return
    row = logits_V.numpy()
    logits_N = row[ids_N].astype(np.float64)
    logits_N *= np.where(logits_N > 0, 1.0 / repetition, repetition)
    row[ids_N] = logits_N - presence * (output_counts_N > 0) - frequency * output_counts_N


def log_probabilities(logits_V: torch.Tensor, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    return torch_ops.log_probabilities(logits_V, token_id, num_top)
