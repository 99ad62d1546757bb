"""Definition of sampling: one row at a time, sorted lists and sums in float64."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels.sample import step
from ridgepoint.kernels.sample.marks import IN_PROMPT, IS_STOP

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import DeviceRules, DeviceShaping, Edits, Scores, Shaping


def draw(
    logits_RV: torch.Tensor, shaping: Shaping | None, edits_R: list[Edits | None], num_top_R: list[int | None]
) -> tuple[list[int], list[Scores | None]]:
    return step.draw(sys.modules[__name__], logits_RV, shaping, edits_R, num_top_R)


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    ids = []
    for r, row in enumerate(logits_RV.double().tolist()):
        best = max(row)
        if not math.isfinite(best) or any(math.isnan(logit) for logit in row):
            ids.append(-1)
        elif shaping is None or shaping.temperature_R[r] == 0:
            ids.append(row.index(best))
        else:
            ids.append(
                _draw(
                    [math.exp((logit - best) / shaping.temperature_R[r]) for logit in row],
                    int(shaping.top_k_R[r]), shaping.top_p_R[r], shaping.min_p_R[r], shaping.uniform_R[r],
                )
            )  # fmt: skip
    return torch.tensor(ids, dtype=torch.int64, device=logits_RV.device)


def choose_on_device(logits_RV: torch.Tensor, shaping: DeviceShaping | None) -> torch.Tensor:
    from ridgepoint.kernels.sample import Shaping

    if shaping is None:
        return choose(logits_RV, None)
    return choose(logits_RV, Shaping(**{name: values.cpu().numpy() for name, values in vars(shaping).items()}))


def edit_on_device(logits_RV: torch.Tensor, rules: DeviceRules) -> torch.Tensor:
    out_RV = logits_RV.clone()
    for r, seat in enumerate(rules.seats_R.tolist()):
        if seat < 0:
            continue
        counts_V = rules.counts_SV[seat].cpu().numpy()
        seen_N = np.flatnonzero(counts_V & (IN_PROMPT | (IS_STOP - 1)))
        rates = (float(column[r]) for column in (rules.repetition_R, rules.presence_R, rules.frequency_R))
        penalise(out_RV[r], seen_N, counts_V[seen_N] & (IS_STOP - 1), *rates)
        out_RV[r] += rules.addends_SV[seat]
        if rules.banned_R[r]:
            out_RV[r][torch.from_numpy((counts_V & IS_STOP) != 0)] = -math.inf
    return out_RV


def count_on_device(counts_SV: torch.Tensor, seats_R: torch.Tensor, ids_R: torch.Tensor) -> None:
    for seat, token in zip(seats_R.tolist(), ids_R.tolist(), strict=True):
        if seat >= 0 and token >= 0:
            counts_SV[seat, token] += 1


def score_on_device(
    logits_RV: torch.Tensor, ids_R: torch.Tensor, num_top_R: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows = len(logits_RV)
    chosen_R = torch.zeros(num_rows)
    top_ids_RN, top_RN = torch.zeros(num_rows, most, dtype=torch.int64), torch.zeros(num_rows, most)
    for r, (token, num_top) in enumerate(zip(ids_R.tolist(), num_top_R.tolist(), strict=True)):
        if num_top >= 0:
            chosen_R[r], top = log_probabilities(logits_RV[r], max(token, 0), min(num_top, most))
            for n, (found, value) in enumerate(top):
                top_ids_RN[r, n], top_RN[r, n] = found, value
    return chosen_R, top_ids_RN, top_RN


def _draw(weights: list[float], top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    ranked = sorted(weights, reverse=True)[: top_k if top_k > 0 else len(weights)]
    floor = ranked[-1]
    if top_p < 1:
        goal, passed = top_p * sum(ranked), 0.0
        for weight in ranked:
            floor = weight
            passed += weight
            if passed >= goal:
                break
    floor = max(floor, min_p * max(weights))
    kept = [weight if weight >= floor else 0.0 for weight in weights]
    goal, passed = uniform * sum(kept), 0.0
    for token, weight in enumerate(kept):
        passed += weight
        if passed > goal:
            return token
    raise AssertionError("uniform is below 1, so some token passes it")


def penalise(
    logits_V: torch.Tensor,
    ids_N: np.ndarray,
    output_counts_N: np.ndarray,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    for token, count in zip(ids_N.tolist(), output_counts_N.tolist(), strict=True):
        logit = float(logits_V[token])
        logit = logit / repetition if logit > 0 else logit * repetition
        logits_V[token] = logit - (presence if count > 0 else 0.0) - frequency * count


def log_probabilities(logits_V: torch.Tensor, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    row = logits_V.double().tolist()
    best = max(row)
    total = best + math.log(sum(math.exp(logit - best) for logit in row))
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    return row[token_id] - total, [(token, row[token] - total) for token in order[:num_top]]
