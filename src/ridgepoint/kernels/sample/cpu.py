"""Sampling in torch ops, vectorised over rows.

Only ops whose result for a row cannot depend on its neighbours are used: elementwise arithmetic that IEEE rounds
exactly, comparisons, top-k *values*, and softmax and cumulative sums along the last axis, which torch computes row by row in
a fixed order. Plain sums are not among them: torch splits a lone row between threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import Shaping

HEAD = 256  # most probable tokens looked at first for top-p; a full sort of a row costs 50 times as much


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    ids_R = logits_RV.argmax(-1)
    best_R1 = logits_RV.gather(1, ids_R[:, None])
    if shaping is not None:
        drawn = np.flatnonzero(shaping.temperature_R != 0)
        if len(drawn) == len(ids_R):
            ids_R = _draw(logits_RV, shaping, drawn)
        elif len(drawn):
            rows = torch.from_numpy(drawn).to(logits_RV.device)
            ids_R[rows] = _draw(logits_RV[rows], shaping, drawn)
    return ids_R.where(best_R1[:, 0].isfinite(), -1)  # argmax finds a NaN if there is one


def _draw(logits_RV: torch.Tensor, shaping: Shaping, rows: np.ndarray) -> torch.Tensor:
    """`rows` picks the entries of `shaping` that belong to `logits_RV`."""
    device, vocab = logits_RV.device, logits_RV.shape[1]

    def column(values_R: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values_R[rows], dtype=dtype, device=device)[:, None]

    below_RV = logits_RV - logits_RV.amax(-1, keepdim=True)  # first, so that a tiny temperature cannot overflow
    probs_RV = torch.softmax(below_RV.div_(column(shaping.temperature_R, torch.float32)), -1)
    top_k, top_p, min_p = shaping.top_k_R[rows], shaping.top_p_R[rows], shaping.min_p_R[rows]
    cuts_k, cuts_p = np.flatnonzero((top_k > 0) & (top_k < vocab)), np.flatnonzero(top_p < 1)
    if len(cuts_k) or len(cuts_p) or min_p.any():
        floor_R1 = torch.zeros(len(rows), 1, device=device)
        if len(cuts_k):
            at = torch.from_numpy(cuts_k).to(device)
            k_R1 = column(shaping.top_k_R, torch.int64)[at]
            floor_R1[at] = probs_RV[at].topk(int(top_k[cuts_k].max())).values.gather(1, k_R1 - 1)
        if len(cuts_p):
            at = torch.from_numpy(cuts_p).to(device)
            floor_R1[at] = _nucleus_floor(probs_RV[at], floor_R1[at], column(shaping.top_p_R, torch.float64)[at])
        if min_p.any():
            floor_R1 = floor_R1.maximum(column(shaping.min_p_R, torch.float32) * probs_RV.amax(-1, keepdim=True))
        probs_RV.masked_fill_(probs_RV < floor_R1, 0.0)
    cdf_RV = probs_RV.cumsum(-1, dtype=torch.float64)
    goal_R1 = column(shaping.uniform_R, torch.float64) * cdf_RV[:, -1:]
    # A NaN row runs off the end here and is marked by the caller.
    return torch.searchsorted(cdf_RV, goal_R1, right=True)[:, 0]


def _nucleus_floor(probs_RV: torch.Tensor, floor_R1: torch.Tensor, top_p_R1: torch.Tensor) -> torch.Tensor:
    """The smallest probability of the shortest run of best tokens that holds `top_p` of the mass at or above `floor`."""
    kept_RV = probs_RV.masked_fill(probs_RV < floor_R1, 0.0)
    goal_R1 = top_p_R1 * kept_RV.cumsum(-1, dtype=torch.float64)[:, -1:]
    head = min(HEAD, probs_RV.shape[1])
    best_RN = kept_RV.topk(head).values
    sums_RN = best_RN.cumsum(-1, dtype=torch.float64)
    out_R1 = best_RN.gather(1, (sums_RN < goal_R1).sum(-1, keepdim=True).clamp_(max=head - 1))
    # Sums in another order may end a rounding below the goal: the last token is then the floor, as in the definition.
    flat = (sums_RN[:, -1:] < goal_R1)[:, 0].nonzero()[:, 0]
    if len(flat) and head < probs_RV.shape[1]:
        best_RV = kept_RV[flat].sort(-1, descending=True).values
        sums_RV = best_RV.cumsum(-1, dtype=torch.float64)
        place_R1 = (sums_RV < goal_R1[flat]).sum(-1, keepdim=True)
        out_R1[flat] = best_RV.gather(1, place_R1.clamp_(max=probs_RV.shape[1] - 1))
    return out_R1.maximum(floor_R1)


def penalise(
    logits_V: torch.Tensor,
    ids_N: torch.Tensor,
    output_counts_N: torch.Tensor,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    logits_N = logits_V[ids_N].double()
    logits_N = torch.where(logits_N > 0, logits_N / repetition, logits_N * repetition)
    logits_N -= presence * (output_counts_N > 0).double()
    logits_N -= frequency * output_counts_N.double()
    logits_V[ids_N] = logits_N.float()


def log_probabilities(logits_V: torch.Tensor, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    logprobs_V = torch.log_softmax(logits_V[None], -1)[0]  # as one row of many: see the module's docstring
    if num_top == 0:
        return float(logprobs_V[token_id]), []
    num_top = min(num_top, len(logits_V))
    # The worst value that is in, then all that reach it: top-k alone would choose among equals as it likes.
    worst = logprobs_V.topk(num_top).values[-1]
    ids_N = (logprobs_V >= worst).nonzero()[:, 0]
    values_N, order_N = logprobs_V[ids_N].sort(descending=True, stable=True)
    top = list(zip(ids_N[order_N].tolist(), values_N.tolist(), strict=True))[:num_top]
    return float(logprobs_V[token_id]), top
