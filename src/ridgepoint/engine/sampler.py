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
from ridgepoint.kernels.sample import Shaping
from ridgepoint.kernels.sample.random import uniforms
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request

LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity


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
        wants = [r for r, request in enumerate(requests) if request.params.logprobs is not None]
        raw = {r: logits_RV[r].clone() if _edits(requests[r]) else logits_RV[r] for r in wants}
        for r, request in enumerate(requests):
            if _edits(request):
                self._edit(logits_RV[r], request)
        token_ids: list[int] = sample.choose(logits_RV, _shaping(requests)).tolist()
        if not wants:
            return token_ids, ()
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        for r in wants:
            if token_ids[r] != sample.NOT_FINITE:
                logprobs[r] = score(raw[r], token_ids[r], requests[r].params.logprobs or 0)
        return token_ids, logprobs

    def _edit(self, logits_V: torch.Tensor, request: Request) -> None:
        params, device = request.params, logits_V.device
        if _penalises(params):
            counts = self._counts.get(request)
            if counts is None:
                self._counts = {kept: c for kept, c in self._counts.items() if kept.finish_reason is None}
                counts = self._counts[request] = _TokenCounts(request.num_prompt)
            ids_N, counts_N = counts.arrays(request.tokens)
            sample.penalise(
                logits_V, ids_N, counts_N,
                repetition=params.repetition_penalty, presence=params.presence_penalty, frequency=params.frequency_penalty,
            )  # fmt: skip
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            logits_V[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits_V.dtype, device=device)
        if request.num_output < params.min_tokens and request.stop_ids:
            logits_V[torch.tensor(sorted(request.stop_ids), device=device)] = float("-inf")


def score(logits_V: torch.Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    chosen, top = sample.log_probabilities(logits_V, token_id, num_top)
    return TokenLogprobs(
        token_id=token_id, logprob=_finite(chosen), top=[(token, _finite(value)) for token, value in top]
    )


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def _penalises(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _edits(request: Request) -> bool:
    params = request.params
    return bool(params.logit_bias) or request.num_output < params.min_tokens or _penalises(params)


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
