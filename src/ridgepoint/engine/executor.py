"""One device runs a step: batch to tensors, tensors through the decoder, logits to tokens. The host reads each result
before it makes the next step; `device_executor` is for devices that are better left running."""

from __future__ import annotations

import time

import torch

from ridgepoint.engine.inputs import InputBuilder, ScoredRows
from ridgepoint.engine.sampler import Sampler, score
from ridgepoint.models.paged import KVCache
from ridgepoint.models.step import Step
from ridgepoint.sched.step import Batch, StepResult


class TorchExecutor:
    """A step (a decoder over its cache) with what turns batches into its inputs and its logits into tokens."""

    def __init__(self, step: Step, cache: KVCache, *, max_num_seqs: int, max_context: int) -> None:
        self.step = step
        self.cache = cache
        self._inputs = InputBuilder(max_num_seqs, -(-max_context // cache.block_tokens), cache.block_tokens)
        self._sampler = Sampler()

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        started_s = time.perf_counter()
        inputs, scored = self._inputs.build(batch)
        result = sample_on_host(batch, scored, self.step.run(inputs.tensors()), self._sampler)
        result.seconds = time.perf_counter() - started_s
        return result


def sample_on_host(batch: Batch, scored: list[ScoredRows], logits_RV: torch.Tensor, sampler: Sampler) -> StepResult:
    """Tokens and log-probabilities by each request's rules. Logits are used up."""
    result = StepResult(token_ids=[], seconds=0.0)
    for rows in scored:
        entries = [score(logits_RV[rows.first_row + i], token, batch.segments[rows.place].request.params.prompt_logprobs or 0)
                   for i, token in enumerate(rows.token_ids)]  # fmt: skip
        result.prompt_logprobs[rows.place] = entries
    requests = [segment.request for segment in batch.segments if segment.wants_sample]
    if requests:
        result.token_ids, result.logprobs = sampler.sample(requests, logits_RV[: len(requests)])
    return result
