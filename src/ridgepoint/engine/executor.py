"""One device runs a step: batch to tensors, tensors through the decoder, logits to tokens."""

from __future__ import annotations

import time

import torch

from ridgepoint.engine.inputs import InputBuilder
from ridgepoint.engine.sampler import Sampler, score
from ridgepoint.models.paged import KVCache
from ridgepoint.models.step import Step
from ridgepoint.sched.step import Batch, StepResult


class TorchExecutor:
    """A step (a decoder over its cache) with what turns batches into its inputs and its logits into tokens."""

    def __init__(self, step: Step, cache: KVCache, *, max_num_seqs: int, max_context: int) -> None:
        device = cache.layers[0].device
        self.step = step
        self.cache = cache
        self._inputs = InputBuilder(max_num_seqs, -(-max_context // cache.block_tokens), cache.block_tokens, device)
        self._sampler = Sampler()

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        started_s = time.perf_counter()
        inputs, scored = self._inputs.build(batch)
        logits_RV = self.step.run(inputs)
        samplers = [segment.request for segment in batch.segments if segment.wants_sample]
        result = StepResult(token_ids=[], seconds=0.0)
        if len(inputs.logit_rows_R):
            for rows in scored:
                entries = [score(logits_RV[rows.first_row + i], token, batch.segments[rows.place].request.params.prompt_logprobs or 0)
                           for i, token in enumerate(rows.token_ids)]  # fmt: skip
                result.prompt_logprobs[rows.place] = entries
            if samplers:
                result.token_ids, result.logprobs = self._sampler.sample(samplers, logits_RV[: len(samplers)])
        result.seconds = time.perf_counter() - started_s
        return result
