"""One device runs a step: batch to tensors, tensors through the decoder, logits to tokens."""

from __future__ import annotations

import time

import torch

from ridgepoint.engine.inputs import InputBuilder
from ridgepoint.engine.sampler import Sampler, score
from ridgepoint.kernels.tensor_call import NotRecordableError
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs
from ridgepoint.models.recorded import RecordedStep
from ridgepoint.sched.step import Batch, StepResult


class TorchExecutor:
    """A decoder with its cache. `device` is where both live.

    A packed decoder's step is recorded once and replayed by one native call; `how` says whether that could be done.
    Steps the recording has no room for (those that score prompts) run the same layers one call at a time.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, *, max_num_seqs: int, max_context: int, max_step_tokens: int
    ) -> None:
        device = cache.layers[0].device
        self.decoder = decoder
        self.cache = cache
        blocks_per_seq = -(-max_context // cache.block_tokens)
        self._inputs = InputBuilder(max_num_seqs, blocks_per_seq, cache.block_tokens, device)
        self._sampler = Sampler()
        self._recorded: RecordedStep | None = None
        try:
            self._recorded = RecordedStep(decoder, cache, max_step_tokens, max_num_seqs, blocks_per_seq)
            self.how = f"recorded once for up to {max_step_tokens} tokens of {max_num_seqs} sequences"
        except NotRecordableError as error:
            self.how = f"run layer by layer: {error}"

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        started_s = time.perf_counter()
        inputs, scored = self._inputs.build(batch)
        samplers = [segment.request for segment in batch.segments if segment.wants_sample]
        result = StepResult(token_ids=[], seconds=0.0)
        logits_RV = self._logits(inputs)
        for rows in scored:
            entries = [score(logits_RV[rows.first_row + i], token, batch.segments[rows.place].request.params.prompt_logprobs or 0)
                       for i, token in enumerate(rows.token_ids)]  # fmt: skip
            result.prompt_logprobs[rows.place] = entries
        if samplers:
            result.token_ids, result.logprobs = self._sampler.sample(samplers, logits_RV[: len(samplers)])
        result.seconds = time.perf_counter() - started_s
        return result

    def _logits(self, inputs: StepInputs) -> torch.Tensor:
        """Float32 logits of the wanted rows; those of a recorded step are overwritten by the next."""
        if self._recorded is not None and self._recorded.fits(inputs):
            return self._recorded.run(inputs)
        x_TD = self.decoder.hidden(inputs.token_ids_T, PagedContext(self.cache, inputs))
        return self.decoder.logits(x_TD[inputs.logit_rows_R])
