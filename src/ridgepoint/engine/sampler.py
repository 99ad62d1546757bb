"""From the logits of a step to its tokens, each by its own request's rules.

Writes what the `sample` op wants before the step runs (`prepare`), is what the step ends with (`leave`, which a recorded
step replays), and reads the tokens afterwards (`found`). From step to step only what changes is written: the uniform
number of each row, the edits of those that have any (what a constraint bans is one), and everything when other requests are sampled. Holds token counts
while a request that has penalties runs; everything else is read from the request, so a request that was preempted
continues as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import Edits, SampledRows, Shaping
from ridgepoint.kernels.sample.random import stream_key, uniform
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request

LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity
_NO_TOKENS = np.zeros(0, dtype=np.int64)


class _TokenCounts:
    """The distinct tokens of a request and how often each is in its output, grown as it grows."""

    def __init__(self, num_prompt: int) -> None:
        self._num_prompt = num_prompt
        self._num_seen = 0
        self._place: dict[int, int] = {}
        self._ids = np.zeros(256, dtype=np.int64)
        self._counts = np.zeros(256, dtype=np.int64)

    def arrays(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        for position in range(self._num_seen, len(tokens)):
            token = tokens[position]
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._ids):
                self._ids, self._counts = (
                    np.resize(self._ids, 2 * place),
                    np.append(self._counts, np.zeros(place, np.int64)),
                )
            self._ids[place] = token
            self._counts[place] += position >= self._num_prompt
        self._num_seen = len(tokens)
        return self._ids[: len(self._place)], self._counts[: len(self._place)]


class Sampler:
    """The ends of a step on the host (`models.captured.Ends`): ids enter as they are."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._rows = SampledRows(max_rows, vocab_size)
        self._requests: Sequence[Request] = ()  # whose rules lie in the rows
        self._streams: list[int] | None = None  # of random numbers; None where all are greedy
        self._edited: list[int] = []  # rows
        self._scores = False
        self._counts: dict[Request, _TokenCounts] = {}  # of requests with penalties that have not finished

    def prepare(self, requests: Sequence[Request]) -> None:
        """The next step's first rows of logits belong to `requests`."""
        if requests != self._requests:
            self._seat(requests)
        if self._streams is not None:
            numbers = [uniform(key, r.num_output) for key, r in zip(self._streams, requests, strict=True)]
            self._rows.draw_by(numbers)
        for row in self._edited:
            self._rows.edit(row, self._edits_of(requests[row]))

    def _seat(self, requests: Sequence[Request]) -> None:
        """Write all rules anew."""
        self._requests = requests
        self._rows.clear()
        params = [request.params for request in requests]
        self._streams = None
        if any(p.temperature != 0.0 for p in params):
            self._streams = [stream_key(request.seed) for request in requests]
            self._rows.shape(
                Shaping(
                    temperature_R=np.array([p.temperature for p in params]), top_k_R=np.array([p.top_k for p in params]),
                    top_p_R=np.array([p.top_p for p in params]), min_p_R=np.array([p.min_p for p in params]),
                    uniform_R=np.zeros(len(params)),
                )
            )  # fmt: skip
        self._edited = [row for row, request in enumerate(requests) if _may_edit(request)]
        self._scores = False
        for row, p in enumerate(params):
            if p.logprobs is not None:
                self._rows.score(row, p.logprobs)
                self._scores = True

    def enter(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        return token_ids_T

    def leave(self, logits_RV: torch.Tensor) -> None:
        """Choose a token for each of the first rows. Rows beyond the requests' are scored, not sampled."""
        self._rows.draw(logits_RV)

    def found(self) -> tuple[list[int], Sequence[TokenLogprobs | None]]:
        """The tokens of the requests. Log-probabilities are of the logits as the model gave them."""
        token_ids, scores = self._rows.found(len(self._requests))
        if not self._scores:
            return token_ids, ()
        return token_ids, [
            None if found is None else logprobs_of(token, *found)
            for token, found in zip(token_ids, scores, strict=True)
        ]

    def _edits_of(self, request: Request) -> Edits:
        params = request.params
        seen_N, counts_N = _NO_TOKENS, _NO_TOKENS
        if penalises(params):
            counts = self._counts.get(request)
            if counts is None:
                self._counts = {kept: c for kept, c in self._counts.items() if kept.finish_reason is None}
                counts = self._counts[request] = _TokenCounts(request.num_prompt)
            seen_N, counts_N = counts.arrays(request.tokens)
        added = dict(params.logit_bias or {})
        if request.num_output < params.min_tokens:
            added.update(dict.fromkeys(request.stop_ids, -math.inf))
        added_A, addends_A = addends_of(request, added)
        return Edits(
            seen_N=seen_N, output_counts_N=counts_N, repetition=params.repetition_penalty, presence=params.presence_penalty,
            frequency=params.frequency_penalty, added_A=added_A, addends_A=addends_A,
        )  # fmt: skip


def addends_of(request: Request, added: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and what is added to their logits, no id twice: `added`, and minus infinity where the request's constraint bans."""
    added_A = np.array(list(added), dtype=np.int64)
    addends_A = np.array(list(added.values()), dtype=np.float32)
    if request.constraint is None:
        return added_A, addends_A
    banned_A = request.constraint.banned(request.tokens, request.num_prompt)
    minus_infinity_A = np.full(len(banned_A), -np.inf, dtype=np.float32)
    if not added:  # else a vocabulary would be copied for nothing
        return banned_A, minus_infinity_A
    kept_A = np.isin(added_A, banned_A, invert=True)
    return np.concatenate((banned_A, added_A[kept_A])), np.concatenate((minus_infinity_A, addends_A[kept_A]))


def score(logits_V: torch.Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    return logprobs_of(token_id, *sample.log_probabilities(logits_V, token_id, num_top))


def logprobs_of(token_id: int, chosen: float, top: list[tuple[int, float]]) -> TokenLogprobs:
    return TokenLogprobs(
        token_id=token_id, logprob=_finite(chosen), top=[(token, _finite(value)) for token, value in top]
    )


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def penalises(params: SamplingParams) -> bool:
    """Whether what it has said changes what it says."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _may_edit(request: Request) -> bool:
    """At one step or another."""
    params = request.params
    return request.constraint is not None or bool(params.logit_bias) or params.min_tokens > 0 or penalises(params)


def edits(request: Request) -> bool:
    """Whether its logits are edited before the next draw."""
    params = request.params
    banned = request.constraint is not None or (request.num_output < params.min_tokens and bool(request.stop_ids))
    return bool(params.logit_bias) or banned or penalises(params)
