"""Which tokens of which requests run next. The same code under a real engine and under a simulated clock.

One rule: every request has tokens computed and tokens wanted, and a step closes the gap under a budget. Requests one
token short go first (their readers are waiting), then the others by arrival, then the queue by arrival. When blocks run
out the latest arrival is put back in the queue with the tokens it has and recomputes them later.

A step may be launched before the one before it has been read (`advance`, then `commit` later): its samples are tokens
that are counted and not yet known. At most one launched step is unread when the next batch is made.

Never sees a tensor, a socket or a clock; `now` is handed in. Invariant (`check`): the pool's references are exactly the
blocks in the tables of running requests, and every request is running, waiting or gone.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ridgepoint.errors import ConfigError, RequestError
from ridgepoint.sched.blocks import BlockPool
from ridgepoint.sched.budget import StepBudget, predict
from ridgepoint.sched.limits import check_fits
from ridgepoint.sched.prefix import PrefixIndex
from ridgepoint.sched.request import UNKNOWN, Request
from ridgepoint.sched.step import Batch, Progress, Segment, StepResult, StepTimer

_by_arrival = attrgetter("arrival")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The room there is. `mixed_prompt_tokens` bounds the prompts of a step in which somebody decodes. `step_budget_s` needs
    a timer; without it steps are filled by tokens alone."""

    num_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_step_tokens: int
    max_context: int
    max_waiting: int
    mixed_prompt_tokens: int | None = None
    step_budget_s: float | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_tokens", "max_num_seqs", "max_context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting must be at least 0, got {self.max_waiting}")
        if self.step_budget_s is not None and not self.step_budget_s > 0:
            raise ConfigError(
                f"step_budget_s must be positive, got {self.step_budget_s:g}",
                hint="leave it out to fill steps by tokens",
            )
        if self.max_step_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_step_tokens {self.max_step_tokens} is below max_num_seqs {self.max_num_seqs}",
                hint="every running sequence needs room for one token in each step",
            )
        if self.mixed_prompt_tokens is not None and self.mixed_prompt_tokens < 1:
            raise ConfigError(f"mixed_prompt_tokens must be at least 1, got {self.mixed_prompt_tokens}")


class Scheduler:
    """`add` and `cancel` at any time; `next_batch` and `commit` in turn, or with `advance` between them: one step ahead."""

    def __init__(self, limits: Limits, timer: StepTimer | None = None) -> None:
        if limits.step_budget_s is not None and timer is None:
            raise ConfigError("step_budget_s needs a step timer", hint="leave it out to fill steps by tokens")
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, PrefixIndex())
        self.running: list[Request] = []  # by arrival
        self.waiting: list[Request] = []  # by arrival
        self._timer = timer
        self._by_id: dict[str, Request] = {}
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._num_arrivals = 0
        self.preemptions_total = 0
        self.prefix_query_tokens_total = 0
        self.prefix_hit_tokens_total = 0
        self.computed_tokens_total = 0

    # ------------------------------------------------------------ requests come and go

    def add(self, request: Request) -> None:
        """Queue a request. Raises `RequestError`: 400 when it could never run, 429 when the queue is full."""
        limits = self.limits
        check_fits(
            request.num_prompt, request.params.max_tokens,
            max_context=limits.max_context, kv_tokens=limits.num_blocks * limits.block_tokens,
        )  # fmt: skip
        if request.id in self._by_id:
            raise RequestError(f"request id {request.id!r} is already in flight", status=409, code="duplicate_id")
        # A free seat is not a place in the queue: what would run at the next step does not count as waiting.
        if self.room <= 0:
            raise RequestError(
                f"the queue is full: {len(self.waiting)} requests wait behind {len(self.running)} running",
                status=429, code="queue_full", hint="try again later",
            )  # fmt: skip
        request.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._by_id[request.id] = request
        self.waiting.append(request)

    def cancel(self, request_id: str) -> Request | None:
        """Drop a request and free its blocks at once. None when no such request is in flight."""
        request = self._by_id.get(request_id)
        if request is not None:
            self._finish(request, "cancelled")
        return request

    def _finish(self, request: Request, reason: str) -> None:
        request.finish_reason = reason
        while request.tokens[-1] == UNKNOWN:  # of steps that are launched and will be passed over
            request.tokens.pop()
        del self._by_id[request.id]
        if request.row >= 0:
            self._leave_running(request)
        else:
            self.waiting.remove(request)

    def _leave_running(self, request: Request) -> None:
        self.running.remove(request)
        self._free_rows.append(request.row)
        request.row = -1
        self.pool.release(request.blocks)
        request.blocks = []
        request.num_keyed = 0

    def _preempt(self, request: Request, budget: StepBudget) -> None:
        budget.unboard(request.arrival)
        self._leave_running(request)
        request.num_computed = 0
        request.num_preemptions += 1
        self.preemptions_total += 1
        insort(self.waiting, request, key=_by_arrival)

    @property
    def idle(self) -> bool:
        return not self._by_id

    @property
    def room(self) -> int:
        """How many more requests `add` takes now."""
        return self.limits.max_waiting + self.limits.max_num_seqs - len(self._by_id)

    # ------------------------------------------------------------ the next step

    def next_batch(self, now: float) -> Batch | None:
        """Fill one step; never an empty one. None when nothing is in flight, or when all that could run wait for the last
        token of a step that was launched."""
        limits = self.limits
        budget = StepBudget(limits.max_step_tokens, self._timer, limits.step_budget_s)
        preemptions_before = self.preemptions_total
        behind: list[Request] = []
        for request in tuple(self.running):
            if request.num_wanted > 1:
                behind.append(request)
            elif request.has_all_tokens:
                continue  # the last one is being computed
            elif request.row >= 0 and self._grow(request, request.num_computed + 1, budget):
                budget.board(Segment(request, request.num_computed, 1, True))
        budget.readers_boarded(limits.mixed_prompt_tokens)

        in_flight: set[bytes] = set()  # keys of blocks that this very step works on
        oldest_behind = True
        for request in behind:
            if request.row >= 0:  # an earlier one may have taken its blocks
                self._board_chunk(request, budget, in_flight, at_least_a_block=oldest_behind)
                oldest_behind = False
        if self.preemptions_total == preemptions_before:
            self._admit(now, budget, in_flight, oldest_behind)
        segments = budget.segments()
        assert segments or self.idle or any(request.has_all_tokens for request in (*self.running, *self.waiting)), (
            "requests are in flight but none can run"
        )
        return Batch(segments, predict(self._timer, segments)) if segments else None

    def _board_chunk(
        self, request: Request, budget: StepBudget, in_flight: set[bytes], *, at_least_a_block: bool
    ) -> None:
        """As many of the wanted tokens as fit, ending on a block boundary unless it is the end."""
        start, wanted, size = request.num_computed, request.num_wanted, self.limits.block_tokens
        count = budget.largest_chunk(start, wanted)
        if at_least_a_block:  # so that a step full of others never starves it
            count = max(count, min(wanted, size, budget.num_tokens_left))
        if count < wanted:
            aligned = (start + count) // size * size - start
            count = aligned if aligned > 0 else count
        if count > 0 and self._grow(request, start + count, budget):
            budget.board_prompt(Segment(request, start, count, count == wanted))
            if self._caches(request):
                touched = min(-(-(start + count) // size), len(request.tokens) // size)
                in_flight.update(request.block_keys(touched, size)[start // size :])

    def _grow(self, request: Request, num_tokens: int, budget: StepBudget) -> bool:
        """Blocks for the first `num_tokens` tokens, taken from the latest arrivals if need be. False: it lost its own."""
        missing = -(-num_tokens // self.limits.block_tokens) - len(request.blocks)
        while self.pool.num_available < missing:
            victim = self.running[-1]
            self._preempt(victim, budget)
            if victim is request:
                return False
        for _ in range(missing):
            request.blocks.append(self.pool.allocate())
        return True

    def _admit(self, now: float, budget: StepBudget, in_flight: set[bytes], oldest_behind: bool) -> None:
        """Seat waiting requests in order of arrival while there are a row, blocks and budget."""
        if not self.waiting or not self._free_rows or budget.num_tokens_left == 0:
            return
        size = self.limits.block_tokens
        promised = sum(-(-len(request.tokens) // size) - len(request.blocks) for request in self.running)
        for request in tuple(self.waiting):
            if not self._free_rows or budget.num_tokens_left == 0:
                break
            found = self._find_cached(request)
            if found is None:
                blocks: list[int] = []
            elif found[1] in in_flight:
                continue  # someone is computing its next block: wait and share it
            else:
                blocks = found[0]
            missing = -(-len(request.tokens) // size) - len(blocks)
            taken = sum(self.pool.refs(block) == 0 for block in blocks)
            # One block in hand for each running sequence keeps it from being preempted by the newcomer.
            if self.pool.num_available < missing + taken + promised + len(self.running):
                if self.running:
                    break
                assert self.pool.num_available >= missing + taken, "add() let a request in that cannot fit"
            contexts = [len(other.tokens) for other in self.running] + [len(request.tokens)]
            if self.running and not budget.decodes_fit(contexts):
                break
            start = len(blocks) * size
            if not oldest_behind and budget.largest_chunk(start, len(request.tokens) - start) == 0:
                break
            self._seat(request, blocks, now)
            promised += missing
            boarded = budget.num_tokens_left
            self._board_chunk(request, budget, in_flight, at_least_a_block=oldest_behind)
            promised -= len(request.blocks) - len(blocks)
            assert budget.num_tokens_left < boarded, "a seated request has no segment"
            oldest_behind = False

    def _seat(self, request: Request, cached_blocks: Sequence[int], now: float) -> None:
        self.waiting.remove(request)
        insort(self.running, request, key=_by_arrival)
        request.row = self._free_rows.pop()
        for block in cached_blocks:
            self.pool.share(block)
        request.blocks = list(cached_blocks)
        request.num_keyed = len(cached_blocks)
        request.num_computed = len(cached_blocks) * self.limits.block_tokens
        if request.admitted_s is None:
            request.admitted_s = now
            request.cached_tokens = request.num_computed
            self.prefix_query_tokens_total += request.num_prompt
            self.prefix_hit_tokens_total += request.num_computed

    # ------------------------------------------------------------ shared prefixes

    def _caches(self, request: Request) -> bool:
        return self.limits.prefix_cache and request.num_scored == request.num_prompt  # else its logits are wanted

    def _find_cached(self, request: Request) -> tuple[list[int], bytes | None] | None:
        """Cached blocks of its tokens from the first on, and the key of the next one. The last token is never among
        them: it must be computed so that there are logits to sample from."""
        if not self._caches(request):
            return None
        count = (len(request.tokens) - 1) // self.limits.block_tokens
        keys = request.block_keys(count, self.limits.block_tokens)
        blocks = self.pool.index.match(keys)
        return blocks, keys[len(blocks)] if len(blocks) < count else None

    def _offer(self, request: Request, num_computed: int) -> None:
        """Give the blocks that became full their keys. A block whose content is already cached stays without."""
        size = self.limits.block_tokens
        full = num_computed // size
        if full > request.num_keyed and self.limits.prefix_cache:
            keys = request.block_keys(full, size)
            for place in range(request.num_keyed, full):
                self.pool.index.insert(keys[place], request.blocks[place])
            request.num_keyed = full

    # ------------------------------------------------------------ the step is done

    def advance(self, batch: Batch) -> None:
        """Count a step as computed as soon as it is launched, so that the next one can be made before it is read."""
        assert not batch.advanced
        batch.advanced = True
        for segment in batch.segments:
            if segment.request.finish_reason is None:
                segment.request.num_computed += segment.num_tokens
                if segment.wants_sample:
                    segment.request.tokens.append(UNKNOWN)

    def commit(self, batch: Batch, result: StepResult) -> list[Progress]:
        """Record what a step computed. Requests that ended while it ran (cancelled, or by the step before it) are passed
        over."""
        if not batch.advanced:
            self.advance(batch)
        progress: list[Progress] = []
        sampled = 0
        for place, segment in enumerate(batch.segments):
            request, token, logprobs = segment.request, None, None
            if segment.wants_sample:
                token = result.token_ids[sampled]
                logprobs = result.logprobs[sampled] if result.logprobs else None
                sampled += 1
            self.computed_tokens_total += segment.num_tokens
            if request.finish_reason is not None:
                continue
            end = segment.start + segment.num_tokens
            if request.row >= 0:  # else it lost its blocks to an older one since
                self._offer(request, end)
            scored: list[Any] | None = result.prompt_logprobs.get(place)
            if scored:
                request.num_scored += len(scored)
            if token is not None and token < 0:
                self._finish(request, "error")
                progress.append(Progress(request, None, None, None, "error"))
            elif token is not None:
                request.tokens[end] = token
                reason = request.reason_to_stop(end)
                if reason is not None:
                    self._finish(request, reason)
                progress.append(Progress(request, token, logprobs, scored, reason))
            elif scored:
                progress.append(Progress(request, None, None, scored, None))
        assert sampled == len(result.token_ids), f"{len(result.token_ids)} tokens for {sampled} samples"
        return progress

    # ------------------------------------------------------------ audit

    def check(self) -> None:
        """Audit every invariant; raise AssertionError naming the first that fails."""
        self.pool.check()
        held = Counter(block for request in self.running for block in request.blocks)
        for block in range(self.pool.num_blocks):
            assert held[block] == self.pool.refs(block), (
                f"block {block}: {self.pool.refs(block)} references, {held[block]} in tables"
            )
        for queue in (self.running, self.waiting):
            assert [r.arrival for r in queue] == sorted(r.arrival for r in queue), "a queue is out of order"
        in_flight = {request.id for request in (*self.running, *self.waiting)}
        assert in_flight == self._by_id.keys() and len(in_flight) == len(self.running) + len(self.waiting)
        rows = [request.row for request in self.running] + self._free_rows
        assert sorted(rows) == list(range(self.limits.max_num_seqs)), "a row is lost or shared"
        for request in self.running:
            assert len(set(request.blocks)) == len(request.blocks), f"{request.id} holds a block twice"
            assert 0 <= request.num_computed < len(request.tokens), f"{request.id} has nothing left to compute"
            assert request.num_computed <= len(request.blocks) * self.limits.block_tokens
        for request in self.waiting:
            assert request.row == -1 and not request.blocks and request.num_computed == 0
