"""Sampling in torch ops, vectorised over rows, on any device. On CPUs `cpu.py` is several times faster.

Only ops whose result for a row cannot depend on its neighbours are used: elementwise arithmetic that IEEE rounds
exactly, comparisons, top-k *values*, and softmax and cumulative sums along the last axis, which torch computes row by row in
a fixed order. Plain sums are not among them: torch splits a lone row between threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels.sample.marks import IN_PROMPT, IS_STOP

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import DeviceRules, DeviceShaping, Shaping

HEAD = 256  # most probable tokens looked at first for top-p; a full sort of a row costs 50 times as much
STEEPEST = 1e30  # of 1 / temperature: what is colder is greedy all the same, and its logits must not overflow


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    ids_R = logits_RV.argmax(-1)
    best_R1 = logits_RV.gather(1, ids_R[:, None])
    if shaping is not None:
        drawn = np.flatnonzero(shaping.temperature_R != 0)
        if len(drawn):
            rows = torch.from_numpy(drawn).to(logits_RV.device)
            ids_R[rows] = _draw(logits_RV[rows], shaping, drawn)
    return ids_R.where(best_R1[:, 0].isfinite(), -1)  # argmax finds a NaN if there is one


def choose_on_device(logits_RV: torch.Tensor, shaping: DeviceShaping | None) -> torch.Tensor:
    """Every row is sorted, since none is known to need less."""
    ids_R = logits_RV.argmax(-1)
    finite_R = logits_RV.gather(1, ids_R[:, None])[:, 0].isfinite()
    if shaping is not None:
        greedy_R = shaping.temperature_R == 0
        temperature_R = torch.where(greedy_R, 1.0, shaping.temperature_R)
        probs_RV = _softened(logits_RV, (1.0 / temperature_R).clamp(max=STEEPEST).float())
        vocab = logits_RV.shape[1]
        k_R = torch.where((shaping.top_k_R > 0) & (shaping.top_k_R < vocab), shaping.top_k_R, vocab)
        ranked_RV = probs_RV.sort(-1, descending=True).values
        floors_R1, _ = _floors_among(probs_RV, ranked_RV, k_R[:, None], shaping.top_p_R[:, None])
        floors_R1 = floors_R1.maximum(shaping.min_p_R.float()[:, None] * ranked_RV[:, :1])
        drawn_R = _inverse(probs_RV.masked_fill(probs_RV < floors_R1, 0.0), shaping.uniform_R[:, None])
        ids_R = torch.where(greedy_R, ids_R, drawn_R)
    return ids_R.where(finite_R, -1)


def probabilities(logits_RV: torch.Tensor, temperature_R: np.ndarray) -> torch.Tensor:
    steep_R = np.minimum(1.0 / temperature_R, STEEPEST)
    return _softened(logits_RV, torch.tensor(steep_R, dtype=torch.float32, device=logits_RV.device))


def _softened(logits_RV: torch.Tensor, steep_R: torch.Tensor) -> torch.Tensor:
    below_RV = logits_RV - logits_RV.amax(-1, keepdim=True)  # first, so that nothing can overflow upwards
    return torch.softmax(below_RV.mul_(steep_R[:, None]), -1)


def _draw(logits_RV: torch.Tensor, shaping: Shaping, rows: np.ndarray) -> torch.Tensor:
    """`rows` picks the entries of `shaping` that belong to `logits_RV`."""
    device, vocab = logits_RV.device, logits_RV.shape[1]

    def column(values_R: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values_R, dtype=dtype, device=device)[:, None]

    probs_RV = probabilities(logits_RV, shaping.temperature_R[rows])
    top_k, top_p, min_p = shaping.top_k_R[rows], shaping.top_p_R[rows], shaping.min_p_R[rows]
    top_k = np.where((top_k > 0) & (top_k < vocab), top_k, vocab)
    cut = np.flatnonzero((top_k < vocab) | (top_p < 1))
    if len(cut) or min_p.any():
        floor_R1 = column(min_p, torch.float32) * probs_RV.amax(-1, keepdim=True)
        if len(cut):
            at = torch.from_numpy(cut).to(device)
            floors_C1 = _floors(
                probs_RV[at], column(top_k[cut], torch.int64), column(top_p[cut], torch.float64), top_k[cut]
            )
            floor_R1[at] = floor_R1[at].maximum(floors_C1)
        probs_RV.masked_fill_(probs_RV < floor_R1, 0.0)
    return _inverse(probs_RV, column(shaping.uniform_R[rows], torch.float64))


def _inverse(probs_RV: torch.Tensor, uniform_R1: torch.Tensor) -> torch.Tensor:
    """Where the cumulative distribution passes `uniform` of its whole. A NaN row runs off the end; the caller marks it."""
    cdf_RV = probs_RV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf_RV, uniform_R1 * cdf_RV[:, -1:], right=True)[:, 0]


def _floors(probs_RV: torch.Tensor, k_R1: torch.Tensor, top_p_R1: torch.Tensor, k_host: np.ndarray) -> torch.Tensor:
    """The smallest probability of the shortest run of best tokens that holds `top_p` of the mass of the k best."""
    vocab = probs_RV.shape[1]
    limited = k_host < vocab
    width = min(vocab, max(HEAD if not limited.all() else 1, int(k_host[limited].max(initial=1))))
    out_R1, found_R = _floors_among(probs_RV, probs_RV.topk(width).values, k_R1, top_p_R1)
    missed = (~found_R).nonzero()[:, 0]
    if len(missed):
        ranked = probs_RV[missed].sort(-1, descending=True).values
        out_R1[missed] = _floors_among(probs_RV[missed], ranked, k_R1[missed], top_p_R1[missed])[0]
    return out_R1


def _floors_among(
    probs_RV: torch.Tensor, best_RN: torch.Tensor, k_R1: torch.Tensor, top_p_R1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Floors from the N best, and which rows N was enough for."""
    width, vocab = best_RN.shape[1], probs_RV.shape[1]
    sums_RN = best_RN.cumsum(-1, dtype=torch.float64)
    last_R1 = k_R1.clamp(max=width) - 1
    whole_R1 = probs_RV.cumsum(-1, dtype=torch.float64)[:, -1:]
    mass_R1 = torch.where(k_R1 < vocab, sums_RN.gather(1, last_R1), whole_R1)
    # Sums in another order may end a rounding below the goal: the last of the k best is then the floor.
    place_R1 = (sums_RN < top_p_R1 * mass_R1).sum(-1, keepdim=True)
    place_R1 = torch.where(top_p_R1 < 1, place_R1, last_R1)
    found_R = ((k_R1 <= width) | ((k_R1 == vocab) & (place_R1 < width)))[:, 0] | (width == vocab)
    return best_RN.gather(1, place_R1.minimum(last_R1)), found_R


def penalise(
    logits_V: torch.Tensor,
    ids_N: np.ndarray,
    output_counts_N: np.ndarray,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    at, counts_N = torch.from_numpy(ids_N).to(logits_V.device), torch.from_numpy(output_counts_N).to(logits_V.device)
    logits_N = logits_V[at].double()
    logits_N = torch.where(logits_N > 0, logits_N / repetition, logits_N * repetition)
    logits_V[at] = (logits_N - presence * (counts_N > 0).double() - frequency * counts_N.double()).float()


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


def edit_on_device(logits_RV: torch.Tensor, rules: DeviceRules) -> torch.Tensor:
    seated_R1 = rules.seats_R[:, None] >= 0
    seats_R = rules.seats_R.clamp(min=0)
    counts_RV = rules.counts_SV[seats_R]
    outputs_RV = (counts_RV & (IS_STOP - 1)).double()
    x_RV = logits_RV.double()
    x_RV = torch.where(x_RV > 0, x_RV / rules.repetition_R[:, None], x_RV * rules.repetition_R[:, None])
    x_RV = x_RV - rules.presence_R[:, None] * (outputs_RV > 0) - rules.frequency_R[:, None] * outputs_RV
    seen_RV = (counts_RV & (IN_PROMPT | (IS_STOP - 1))) != 0
    edited_RV = torch.where(seen_RV, x_RV.float(), logits_RV) + rules.addends_SV[seats_R]
    banned_RV = (rules.banned_R[:, None] != 0) & ((counts_RV & IS_STOP) != 0)
    return torch.where(seated_R1, edited_RV.masked_fill(banned_RV, float("-inf")), logits_RV)


def count_on_device(counts_SV: torch.Tensor, seats_R: torch.Tensor, ids_R: torch.Tensor) -> None:
    counted_R = ((seats_R >= 0) & (ids_R >= 0)).to(counts_SV.dtype)
    counts_SV.index_put_((seats_R.clamp(min=0), ids_R.clamp(min=0)), counted_R, accumulate=True)


def score_on_device(
    logits_RV: torch.Tensor, ids_R: torch.Tensor, num_top_R: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A whole stable sort, so that equals come by id."""
    logprobs_RV = torch.log_softmax(logits_RV, -1)
    chosen_R = logprobs_RV.gather(1, ids_R.clamp(min=0)[:, None])[:, 0]
    top_RN, top_ids_RN = (part[:, :most] for part in logprobs_RV.sort(dim=-1, descending=True, stable=True))
    missing = most - top_RN.shape[1]  # of a vocabulary smaller than the lists
    return chosen_R, torch.nn.functional.pad(top_ids_RN, (0, missing)), torch.nn.functional.pad(top_RN, (0, missing))
