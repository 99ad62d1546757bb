"""From the logits of a step to its tokens, each by its own request's rules.

Collects what the `sample` op wants: shaping values and uniform numbers per row, the edits of a row's logits (bias, ban,
penalties), log-probabilities for those who asked. Holds per-request token counts while a request that has penalties
runs; everything else is read from the request, so a request that was preempted continues as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.kernels import sample
from ridgepoint.kernels.sample import Edits, Shaping
from ridgepoint.kernels.sample.random import uniforms
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
    def __init__(self) -> None:
        self._counts: dict[Request, _TokenCounts] = {}  # of requests with penalties that have not finished

    def sample(
        self, requests: Sequence[Request], logits_RV: torch.Tensor
    ) -> tuple[list[int], Sequence[TokenLogprobs | None]]:
        """A token for each request from its row of logits, which are used up. Log-probabilities are of the logits as
        the model gave them."""
        num_top_R = [request.params.logprobs for request in requests]
        edits_R = [self._edits_of(request) if edits(request) else None for request in requests]
        token_ids, scores = sample.draw(logits_RV, _shaping(requests), edits_R, num_top_R)
        if all(num_top is None for num_top in num_top_R):
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
        return Edits(
            seen_N=seen_N, output_counts_N=counts_N, repetition=params.repetition_penalty, presence=params.presence_penalty,
            frequency=params.frequency_penalty, added_A=np.array(list(added), dtype=np.int64),
            addends_A=np.array(list(added.values()), dtype=np.float32),
        )  # fmt: skip


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


def edits(request: Request) -> bool:
    """Whether its logits are edited before the next draw."""
    params = request.params
    banned = request.num_output < params.min_tokens and bool(request.stop_ids)
    return bool(params.logit_bias) or banned or penalises(params)


def _shaping(requests: Sequence[Request]) -> Shaping | None:
    """None when every request is greedy."""
    if all(request.params.temperature == 0.0 for request in requests):
        return None
    params = [request.params for request in requests]
    return Shaping(
        temperature_R=np.array([p.temperature for p in params]),
        top_k_R=np.array([p.top_k for p in params]),
        top_p_R=np.array([p.top_p for p in params]),
        min_p_R=np.array([p.min_p for p in params]),
        uniform_R=uniforms([request.seed for request in requests], [request.num_output for request in requests]),
    )
