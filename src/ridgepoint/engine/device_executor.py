"""Steps on a device that runs behind the host: launched from what is known, read later.

The life of a step: arrays on the host, one copy, layers (a graph when it only decodes), sampling where the logits are, one
copy of the tokens back. No call in between waits for the device, so the next step can be made meanwhile; its unknown
tokens are the ones just sampled, and the device has them. A step with a request whose rules need the host is sampled there, and known
when `submit` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ridgepoint.engine.device_sampler import NUM_COLUMNS, DeviceSampler
from ridgepoint.engine.executor import sample_on_host
from ridgepoint.engine.inputs import InputBuilder
from ridgepoint.engine.moment import Moment
from ridgepoint.engine.sampler import Sampler
from ridgepoint.engine.startup import Startup
from ridgepoint.kernels import dispatch
from ridgepoint.models.captured import Capture
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.paged import KVCache
from ridgepoint.models.staging import HostInputs, Staging
from ridgepoint.models.step import DeviceStep, make_device_step
from ridgepoint.sched.step import Batch, StepResult

UNREAD_STEPS = 2  # one runs, one is being launched


@dataclass(frozen=True)
class Launched:
    """Tokens on their way to `ids_R`, there once `end` has passed."""

    ids_R: torch.Tensor
    start: Moment
    end: Moment
    is_known: bool = False

    def wait(self) -> StepResult:
        self.end.wait()
        return StepResult(token_ids=self.ids_R.tolist(), seconds=self.end.seconds_since(self.start))


@dataclass(frozen=True)
class Known:
    result: StepResult
    is_known: bool = True

    def wait(self) -> StepResult:
        return self.result


class DeviceExecutor:
    """`step` was made around `sampler` (its ends) and `staging`."""

    def __init__(
        self, step: DeviceStep, cache: KVCache, staging: Staging, sampler: DeviceSampler, *, max_context: int
    ) -> None:
        self.cache = cache
        self.step, self.staging, self.sampler = step, staging, sampler
        self._host_sampler = Sampler()
        self._inputs = InputBuilder(staging.max_seqs, -(-max_context // cache.block_tokens), cache.block_tokens)
        device = cache.layers[0].device
        on_gpu = device.type == "cuda"
        self._back = [torch.zeros(staging.max_seqs, dtype=torch.int64, pin_memory=on_gpu) for _ in range(UNREAD_STEPS)]
        self._moments = [(Moment(device), Moment(device)) for _ in range(UNREAD_STEPS)]
        self._turn = 0

    def run(self, batch: Batch) -> StepResult:
        return self.submit(batch).wait()

    @torch.inference_mode()
    def submit(self, batch: Batch) -> Launched | Known:
        """Launch a step. At most `UNREAD_STEPS` may be unread at any time."""
        self._turn = (self._turn + 1) % UNREAD_STEPS
        start, end = self._moments[self._turn]
        host, scored = self._inputs.build(batch)
        requests = [segment.request for segment in batch.segments if segment.wants_sample]
        columns = self.sampler.columns(requests)
        start.mark()
        logits_RV = self.step.run(self.staging.stage(self.step.pad(host), columns))
        if not scored and all(self.sampler.serves(request) for request in requests):
            ids_R = self._back[self._turn][: len(requests)]
            ids_R.copy_(self.sampler.ids_R[: len(requests)], non_blocking=True)
            end.mark()
            return Launched(ids_R, start, end)
        result = sample_on_host(batch, scored, logits_RV, self._host_sampler)
        end.mark()
        end.wait()
        result.seconds = end.seconds_since(start)
        return Known(result)


def device_executor(
    decoder: Decoder,
    *,
    num_blocks: int,
    block_tokens: int,
    max_seqs: int,
    max_tokens: int,
    max_context: int,
    announce: Callable[[str], None],
    startup: Startup,
    tune_s: float = 0.0,
    capture: Capture | None = None,
) -> DeviceExecutor:
    """An executor with everything around it: cache, staging, sampler and step. The cache has a block more than it is asked
    for, which belongs to padding rows. `tune_s` bounds what may be spent on trying kernels that no table knows. `capture`
    stands in for CUDA's graphs where there are none."""
    device = decoder.embed.weight.device
    cache = KVCache(decoder.spec, num_blocks + 1, block_tokens, decoder.compute_dtype, device)
    staging = Staging(
        max_tokens=max_tokens, max_seqs=max_seqs, max_blocks_per_seq=-(-max_context // block_tokens),
        num_columns=NUM_COLUMNS, device=device,
    )  # fmt: skip
    sampler = DeviceSampler(staging.columns)
    if device.type == "cuda" and dispatch.triton_installed():
        from ridgepoint.engine.tune import tuned_at_start
        from ridgepoint.models.tunables import problems_of

        with startup.part("tune"):
            problems = problems_of(decoder, cache, max_seqs=max_seqs, max_tokens=max_tokens, max_context=max_context)
            tuned_at_start(problems, device, budget_s=tune_s, announce=announce, startup=startup)
    with torch.inference_mode():
        step, why = make_device_step(
            decoder, cache, staging, sampler, max_seqs=max_seqs, max_context=max_context, scratch_block=num_blocks,
            capture=capture, timed=startup.part,
        )  # fmt: skip
        with startup.part("compile"):
            _warm_prompts(step, staging, sampler, decoder.spec.vocab_size, scratch_block=num_blocks, size=block_tokens)
    announce(why)
    return DeviceExecutor(step, cache, staging, sampler, max_context=max_context)


def _warm_prompts(
    step: DeviceStep, staging: Staging, sampler: DeviceSampler, vocab_size: int, *, scratch_block: int, size: int
) -> None:
    """Run made-up prompts of doubling length in the scratch block, so that the first real one finds its kernels compiled."""
    num_seqs = 1
    while num_seqs <= staging.max_seqs and num_seqs * size <= staging.max_tokens:
        position_T = np.tile(np.arange(size), num_seqs)
        prompts = HostInputs(
            token_ids_T=np.arange(num_seqs * size) % vocab_size,
            positions_T=position_T,
            slots_T=scratch_block * size + position_T,
            query_starts_B1=np.arange(num_seqs + 1) * size,
            context_lens_B=np.full(num_seqs, size),
            block_tables_BN=np.full((num_seqs, 1), scratch_block),
            logit_rows_R=np.arange(1, num_seqs + 1) * size - 1,
        )
        step.run(staging.stage(prompts, sampler.columns([])))
        num_seqs *= 2
