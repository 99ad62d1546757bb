"""From logits to a token. A row's result depends on that row alone, bit for bit, whatever the other rows are.

`choose` shapes and draws: temperature; top-k; top-p of the mass of the k best; min-p of the best. Each of the three is
a threshold on the probability, so equals are kept or dropped together. Then the inverse of the cumulative distribution, in
order of token ids, at a given uniform number. `penalise` edits one row's logits before that. `log_probabilities` reads a row as the model gave it.
`draw` is all of it for a whole step: natively one call, elsewhere those three for one row after the other. `SampledRows` is
`draw` at fixed places, which a recorded step can end with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ridgepoint.kernels.dispatch import implementation
from ridgepoint.kernels.sample.marks import IN_PROMPT as IN_PROMPT
from ridgepoint.kernels.sample.marks import IS_STOP as IS_STOP
from ridgepoint.kernels.sample.rows import SampledRows as SampledRows

NOT_FINITE = -1  # the token of a row whose logits are not numbers


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """One entry per row, on the host. Neutral: temperature 1, top_k 0, top_p 1, min_p 0. Temperature 0 is greedy and
    ignores the rest. `uniform_R` is in [0, 1)."""

    temperature_R: np.ndarray
    top_k_R: np.ndarray
    top_p_R: np.ndarray
    min_p_R: np.ndarray
    uniform_R: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Edits:
    """What happens to one row before its draw: penalties (see `penalise`), then `addends_A` on the tokens `added_A` (minus
    infinity bans one). Neutral: no tokens."""

    seen_N: np.ndarray  # int64
    output_counts_N: np.ndarray  # int64
    repetition: float
    presence: float
    frequency: float
    added_A: np.ndarray  # int64
    addends_A: np.ndarray  # float32


Scores = tuple[float, list[tuple[int, float]]]  # as `log_probabilities` gives them


def draw(
    logits_RV: torch.Tensor, shaping: Shaping | None, edits_R: list[Edits | None], num_top_R: list[int | None]
) -> tuple[list[int], list[Scores | None]]:
    """A token for each row, and its log-probabilities with the `num_top` best where that is not None (and the token is
    one). They are of the logits as given, which are used up: their memory may be edited."""
    out: tuple[list[int], list[Scores | None]] = implementation("sample", logits_RV).draw(
        logits_RV, shaping, edits_R, num_top_R
    )
    return out


@dataclass(frozen=True, kw_only=True)
class DeviceShaping:
    """`Shaping` where the logits are: float64 and (`top_k_R`) int64 tensors."""

    temperature_R: torch.Tensor
    top_k_R: torch.Tensor
    top_p_R: torch.Tensor
    min_p_R: torch.Tensor
    uniform_R: torch.Tensor


def choose_on_device(logits_RV: torch.Tensor, shaping: DeviceShaping | None) -> torch.Tensor:
    """`choose` without a word to the host, so that it can be captured: which rows are greedy or cut is not known to it."""
    out: torch.Tensor = implementation("sample", logits_RV).choose_on_device(logits_RV, shaping)
    return out


@dataclass(frozen=True, kw_only=True)
class DeviceRules:
    """`Edits` of a step's rows where the logits are. What a request has said and what it adds lies in its seat, so that a step
    needs no word of it: `counts_SV` (int32) how often each token is in the output, with `IN_PROMPT` added for those of the
    prompt and `IS_STOP` for those that end it; `addends_SV` (float32). A row with a negative seat has no rules."""

    counts_SV: torch.Tensor
    addends_SV: torch.Tensor
    seats_R: torch.Tensor
    banned_R: torch.Tensor  # int64: whether stop tokens are
    repetition_R: torch.Tensor
    presence_R: torch.Tensor
    frequency_R: torch.Tensor


def edit_on_device(logits_RV: torch.Tensor, rules: DeviceRules) -> torch.Tensor:
    """A copy of the logits with each row's edits, without a word to the host."""
    out: torch.Tensor = implementation("sample", logits_RV).edit_on_device(logits_RV, rules)
    return out


def count_on_device(counts_SV: torch.Tensor, seats_R: torch.Tensor, ids_R: torch.Tensor) -> None:
    """Add the tokens just chosen to their seats; rows without a seat or a token are left out. A seat belongs to one row."""
    implementation("sample", counts_SV).count_on_device(counts_SV, seats_R, ids_R)


def score_on_device(
    logits_RV: torch.Tensor, ids_R: torch.Tensor, num_top_R: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`log_probabilities` of many rows without a word to the host: of the chosen tokens (R), then ids and log-probabilities of
    the best (R, `most`), of which the first `num_top_R` (int64, at most `most`) hold. Rows with a negative number hold nothing."""
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = implementation("sample", logits_RV).score_on_device(
        logits_RV, ids_R, num_top_R, most
    )
    return out


def choose(logits_RV: torch.Tensor, shaping: Shaping | None) -> torch.Tensor:
    """Token ids_R (int64) for float32 logits; `shaping` None is greedy for every row. `NOT_FINITE` where a row has no
    finite best logit or any NaN."""
    out: torch.Tensor = implementation("sample", logits_RV).choose(logits_RV, shaping)
    return out


def penalise(
    logits_V: torch.Tensor,
    ids_N: np.ndarray,
    output_counts_N: np.ndarray,
    *,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Edit one row in place. `ids_N` are the distinct tokens of prompt and output, `output_counts_N` how often each is
    in the output. Repetition divides a positive logit and multiplies a negative one, for all of them; presence and
    frequency are subtracted for those in the output, once and once per occurrence."""
    implementation("sample", logits_V).penalise(logits_V, ids_N, output_counts_N, repetition, presence, frequency)


def log_probabilities(logits_V: torch.Tensor, token_id: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token_id` under one row, and the `num_top` best as (id, log-probability), best first;
    equals by id."""
    out: tuple[float, list[tuple[int, float]]] = implementation("sample", logits_V).log_probabilities(
        logits_V, token_id, num_top
    )
    return out
