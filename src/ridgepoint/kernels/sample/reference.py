"""Definition of sampling: one row at a time, sorted lists and sums in float64."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from ridgepoint.kernels.sample import step

if TYPE_CHECKING:
    from ridgepoint.kernels.sample import DeviceShaping, Edits, Scores, Shaping


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
