"""One device runs a step: batch to tensors, tensors through the decoder, logits to tokens. The host reads each result
before it makes the next step; `device_executor` is for devices that are better left running."""

from __future__ import annotations

import time

import torch

from ridgepoint.engine.inputs import InputBuilder, ScoredRows
from ridgepoint.engine.sampler import Sampler, score
from ridgepoint.models.paged import KVCache
from ridgepoint.models.step import HostStep
from ridgepoint.sched.step import Batch, StepResult


class HostExecutor:
    """A step (a decoder over its cache, which ends with `sampler`) and what turns batches into its inputs."""

    def __init__(self, step: HostStep, cache: KVCache, sampler: Sampler) -> None:
        self.step = step
        self.cache = cache
        self._inputs = InputBuilder(step.room, cache.block_tokens)
        self._sampler = sampler

    def run(self, batch: Batch) -> StepResult:
        started_s = time.perf_counter()
        sizes, scored = self._inputs.build(batch)
        self._sampler.prepare(batch.sampled)
        logits_RV = self.step.run(sizes)
        result = read(batch, scored, logits_RV, self._sampler)
        result.seconds = time.perf_counter() - started_s
        return result


def read(batch: Batch, scored: list[ScoredRows], logits_RV: torch.Tensor, sampler: Sampler) -> StepResult:
    """The tokens that a step chose, and the log-probabilities that requests asked for."""
    token_ids, logprobs = sampler.found()
    result = StepResult(token_ids=token_ids, logprobs=logprobs, seconds=0.0)
    for rows in scored:
        num_top = batch.segments[rows.place].request.params.prompt_logprobs or 0
        result.prompt_logprobs[rows.place] = [
            score(logits_RV[rows.first_row + i], token, num_top) for i, token in enumerate(rows.token_ids)
        ]
    return result
