"""Steps on a device that runs behind the host: launched from what is known, read later.

The life of a step: arrays on the host, one copy, layers (a graph when it only decodes), sampling where the logits are, one
copy of the tokens back. No call in between waits for the device, so the next step can be made meanwhile; its unknown
tokens are the ones just sampled, and the device has them. Log-probabilities, where somebody wants them, take more copies back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ridgepoint.engine.device_sampler import MOST_TOP, NUM_COLUMNS, DeviceSampler
from ridgepoint.engine.inputs import InputBuilder, ScoredRows
from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.engine.moment import Moment
from ridgepoint.engine.sampler import logprobs_of
from ridgepoint.engine.startup import Startup
from ridgepoint.kernels import dispatch, sample
from ridgepoint.models.captured import Capture
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.host_inputs import HostInputs
from ridgepoint.models.narrow import narrow_routers
from ridgepoint.models.paged import KVCache
from ridgepoint.models.staging import Staging
from ridgepoint.models.step import DeviceStep, make_device_step
from ridgepoint.sched.request import Request
from ridgepoint.sched.step import Batch, StepResult

UNREAD_STEPS = 2  # one runs, one is being launched


@dataclass(frozen=True)
class Scores:
    """Log-probabilities on their way: of chosen tokens (R), and ids and log-probabilities of the best (R, N)."""

    chosen_R: torch.Tensor
    top_ids_RN: torch.Tensor
    top_RN: torch.Tensor

    def of(self, row: int, token_id: int, num_top: int) -> TokenLogprobs:
        top = zip(self.top_ids_RN[row, :num_top].tolist(), self.top_RN[row, :num_top].tolist(), strict=True)
        return logprobs_of(token_id, float(self.chosen_R[row]), list(top))


@dataclass(frozen=True)
class ScoredSegment:
    """Prompt tokens of the segment at `place` whose log-probabilities are on their way."""

    place: int
    token_ids: list[int]
    num_top: int
    scores: Scores


@dataclass(frozen=True)
class Launched:
    """Tokens on their way to `ids_R`, there once `end` has passed, and the scores of those that have any: a number of
    alternatives each, with where they are."""

    ids_R: torch.Tensor
    start: Moment
    end: Moment
    scored_R: Sequence[tuple[int, int, Scores] | None] = ()
    prompts: Sequence[ScoredSegment] = ()
    is_known: bool = False

    def wait(self) -> StepResult:
        self.end.wait()
        token_ids = self.ids_R.tolist()
        return StepResult(
            token_ids=token_ids,
            seconds=self.end.seconds_since(self.start),
            logprobs=[
                None if found is None or token < 0 else found[2].of(found[0], token, found[1])
                for token, found in zip(token_ids, self.scored_R, strict=True)
            ]
            if self.scored_R
            else (),
            prompt_logprobs={
                segment.place: [
                    segment.scores.of(i, token, segment.num_top) for i, token in enumerate(segment.token_ids)
                ]
                for segment in self.prompts
            },
        )


class DeviceExecutor:
    """`step` was made around `sampler` (its ends) and `staging`."""

    def __init__(
        self, step: DeviceStep, cache: KVCache, staging: Staging, sampler: DeviceSampler, *, max_context: int
    ) -> None:
        self.cache = cache
        self.step, self.staging, self.sampler = step, staging, sampler
        room = HostInputs.room(staging.max_tokens, staging.max_seqs, -(-max_context // cache.block_tokens))
        self._inputs = InputBuilder(room, cache.block_tokens)
        device = cache.layers[0].device
        on_gpu = device.type == "cuda"
        self._back = [torch.zeros(staging.max_seqs, dtype=torch.int64, pin_memory=on_gpu) for _ in range(UNREAD_STEPS)]
        self._scores_back = [
            Scores(*(torch.zeros_like(given, device="cpu", pin_memory=on_gpu) for given in _given(sampler)))
            for _ in range(UNREAD_STEPS)
        ]
        self._moments = [(Moment(device), Moment(device)) for _ in range(UNREAD_STEPS)]
        self._turn = 0

    def run(self, batch: Batch) -> StepResult:
        return self.submit(batch).wait()

    @torch.inference_mode()
    def submit(self, batch: Batch) -> Launched:
        """Launch a step. At most `UNREAD_STEPS` may be unread at any time."""
        self._turn = (self._turn + 1) % UNREAD_STEPS
        start, end = self._moments[self._turn]
        sizes, scored = self._inputs.build(batch)
        host, requests = self._inputs.room.first(sizes), batch.sampled
        columns = self.sampler.columns(requests)
        start.mark()
        self.sampler.seat(requests)
        logits_RV = self.step.run(self.staging.stage(self.step.pad(host), columns))
        ids_R = self._back[self._turn][: len(requests)]
        ids_R.copy_(self.sampler.ids_R[: len(requests)], non_blocking=True)
        scored_R = self._score(requests, logits_RV)
        prompts = [self._score_prompt(batch, rows, logits_RV) for rows in scored]
        end.mark()
        # What a constraint bans next follows from this step's tokens.
        is_known = any(request.constraint is not None for request in requests)
        return Launched(ids_R, start, end, scored_R, prompts, is_known)

    def _score(self, requests: Sequence[Request], logits_RV: torch.Tensor) -> list[tuple[int, int, Scores] | None]:
        """Start the copies of what was listed in the step, and list what asks for more than a step lists."""
        wanted = [request.params.logprobs for request in requests]
        if all(num_top is None for num_top in wanted):
            return []
        count, listed = len(requests), self._scores_back[self._turn]
        for place, given in zip(vars(listed).values(), _given(self.sampler), strict=True):
            place[:count].copy_(given[:count], non_blocking=True)
        ids_R = self.sampler.ids_R
        return [
            None if num_top is None
            else (r, num_top, listed) if num_top <= MOST_TOP
            else (0, num_top, self._scores_of(logits_RV[r : r + 1], ids_R[r : r + 1], num_top))
            for r, num_top in enumerate(wanted)
        ]  # fmt: skip

    def _score_prompt(self, batch: Batch, rows: ScoredRows, logits_RV: torch.Tensor) -> ScoredSegment:
        num_top = batch.segments[rows.place].request.params.prompt_logprobs or 0
        ids_R = self.sampler.sent(np.array(rows.token_ids, dtype=np.int64))
        mine_RV = logits_RV[rows.first_row : rows.first_row + len(rows.token_ids)]
        return ScoredSegment(rows.place, rows.token_ids, num_top, self._scores_of(mine_RV, ids_R, num_top))

    def _scores_of(self, logits_RV: torch.Tensor, ids_R: torch.Tensor, num_top: int) -> Scores:
        """Of rows outside a captured step, on their way back."""
        most = min(num_top, logits_RV.shape[1])
        num_top_R = torch.full(ids_R.shape, most, dtype=torch.int64, device=ids_R.device)
        scores = sample.score_on_device(logits_RV, ids_R, num_top_R, most)
        return Scores(*(_sent_back(found) for found in scores))


def _given(sampler: DeviceSampler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return sampler.chosen_R, sampler.top_ids_RN, sampler.top_RN


def _sent_back(found: torch.Tensor) -> torch.Tensor:
    if found.device.type == "cpu":
        return found.clone()
    return torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)


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
    if device.type == "cuda":
        narrow_routers(decoder)
    cache = KVCache(decoder.spec, num_blocks + 1, block_tokens, decoder.compute_dtype, device)
    staging = Staging(
        max_tokens=max_tokens, max_seqs=max_seqs, max_blocks_per_seq=-(-max_context // block_tokens),
        num_columns=NUM_COLUMNS, device=device,
    )  # fmt: skip
    sampler = DeviceSampler(staging.columns, decoder.spec.vocab_size)
    if device.type == "cuda" and dispatch.triton_installed():
        from ridgepoint.engine.tune import tuned_at_start
        from ridgepoint.kernels.overlap_trial import settle_overlap
        from ridgepoint.models.tunables import problems_of

        with startup.part("compile"):
            settle_overlap(device, announce)
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
