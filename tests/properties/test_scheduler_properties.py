"""Random traffic through scheduler, pool and prefix index: nothing leaks, everyone finishes, company changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paged_memory import VOCAB, PagedMemory, generate_alone

from ridgepoint.errors import RequestError
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.prefix import block_key, form_key
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import StepShape

MAX_CONTEXT = 64


@dataclass
class FakeCost:
    seconds: float


class LinearTimer:
    """A fixed cost, a cost per token and a cost per cached token."""

    def seconds(self, shape: StepShape) -> FakeCost:
        return FakeCost(1.0 + 0.1 * sum(shape.new_tokens) + 0.01 * sum(shape.cached_tokens))


# Few distinct prompts with common heads, so that prefixes are shared, extended and evicted all the time.
HEADS = [[1] * 33, [1] * 8 + [2] * 25, [3, 4, 5], [1, 2, 3, 4] * 9]
prompts = st.builds(
    lambda head, keep, tail: [*head[:keep], *tail] or [7],
    st.sampled_from(HEADS), st.sampled_from([0, 5, 9, 16, 17, 31, 40]), st.lists(st.integers(0, 3), max_size=4),
)  # fmt: skip
limits = st.builds(
    Limits,
    num_blocks=st.integers(3, 30), block_tokens=st.sampled_from([2, 3, 4, 8]), max_num_seqs=st.integers(1, 5),
    max_step_tokens=st.sampled_from([5, 6, 9, 12, 24]), max_context=st.just(MAX_CONTEXT), max_waiting=st.integers(0, 12),
    mixed_prompt_tokens=st.sampled_from([None, 1, 4, 9]), step_budget_s=st.sampled_from([None, None, 0.5, 1.5, 3.0]), prefix_cache=st.booleans(),
)  # fmt: skip
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 20), min_tokens=st.integers(0, 3), ignore_eos=st.booleans(),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=6).map(tuple),
)  # fmt: skip
EOS = (11, 12)
# Runs that end on blocks, within them, and several in one.
runs = st.sampled_from([(), (), (8,), (3,), (5, 16)])


class Traffic(RuleBasedStateMachine):
    @initialize(limits=limits, whole_runs=runs)
    def start(self, limits: Limits, whole_runs: tuple[int, ...]) -> None:
        self.limits = limits
        self.whole_runs = whole_runs
        self.scheduler = Scheduler(limits, LinearTimer() if limits.step_budget_s is not None else None)
        self.memory = PagedMemory(limits.num_blocks, limits.block_tokens)
        self.requests: dict[str, Request] = {}
        self.now = 0.0

    @rule(arrivals=st.lists(st.tuples(prompts, params), min_size=1, max_size=4))
    def add(self, arrivals: list[tuple[list[int], SamplingParams]]) -> None:
        for prompt, params in arrivals:
            self._add(prompt, params)

    def _add(self, prompt: list[int], params: SamplingParams) -> None:
        request = Request(
            f"r{len(self.requests)}",
            prompt,
            params,
            seed=0,
            eos_ids=EOS,
            arrived_s=self.now,
            whole_runs=self.whole_runs,
        )
        try:
            self.scheduler.add(request)
        except RequestError as error:
            kv_tokens = self.limits.num_blocks * self.limits.block_tokens
            too_long = len(prompt) + params.max_tokens > min(MAX_CONTEXT, kv_tokens + 1)
            in_flight = len(self.scheduler.running) + len(self.scheduler.waiting)
            full = in_flight >= self.limits.max_num_seqs + self.limits.max_waiting
            assert error.status == (400 if too_long else 429)
            assert too_long or full
        else:
            self.requests[request.id] = request

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._cancel_one(data)

    def _cancel_one(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.requests.values())))
        was_done = request.finish_reason is not None
        held_before = self.scheduler.pool.num_held
        shared = sum(self.scheduler.pool.refs(block) > 1 for block in request.blocks)
        expected = held_before - (len(request.blocks) - shared)
        assert (self.scheduler.cancel(request.id) is None) == was_done
        assert self.scheduler.pool.num_held == (held_before if was_done else expected)  # freed at once

    @rule(data=st.data(), steps=st.integers(1, 6), cancel_during=st.booleans())
    def step(self, data: st.DataObject, steps: int, cancel_during: bool) -> None:
        for _ in range(steps):
            self._step(data if cancel_during else None)

    def _step(self, cancel_with: st.DataObject | None = None) -> None:
        self.now += 1.0
        decoding = [r for r in self.scheduler.running if r.num_wanted == 1]
        preempted_before = self.scheduler.preemptions_total
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            assert self.scheduler.idle
            return
        self.scheduler.check()
        assert 0 < batch.num_tokens <= self.limits.max_step_tokens
        assert len({id(s.request) for s in batch.segments}) == len(batch.segments) <= self.limits.max_num_seqs
        boarded = {id(segment.request) for segment in batch.segments}
        readers = {id(request) for request in decoding}
        if boarded & readers and self.limits.mixed_prompt_tokens is not None:
            prompt_tokens = sum(s.num_tokens for s in batch.segments if id(s.request) not in readers)
            assert prompt_tokens <= self.limits.mixed_prompt_tokens
        for request in decoding:  # nobody who is read from skips a step, unless its blocks were taken
            assert id(request) in boarded or request.row < 0
        if self.scheduler.preemptions_total > preempted_before:
            assert min(r.arrival for r in self.scheduler.running) < min(r.arrival for r in self.scheduler.waiting)
        result = self.memory.run(batch)
        if cancel_with is not None and self.requests:
            self._cancel_one(cancel_with)
        for progress in self.scheduler.commit(batch, result):
            assert progress.request.finish_reason == progress.finish_reason

    @invariant()
    def audit(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            for request in self.scheduler.running:  # a key says what its block holds, from the first token on
                parent, size = request.root, self.limits.block_tokens
                for place in range(request.num_computed // size):
                    for run in request.whole_runs:
                        rest = request.num_prompt - request.num_prompt % run
                        if place * size <= rest < (place + 1) * size:
                            parent = form_key(parent, run, rest)
                    parent = block_key(parent, request.tokens[place * size : place * size + size])
                    assert self.scheduler.pool.index.key_of(request.blocks[place]) in (None, parent)
                for block in request.blocks[request.num_computed // size :]:
                    assert self.scheduler.pool.index.key_of(block) is None

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if self.scheduler.idle:
                break
            self._step()
            self.scheduler.check()
        assert self.scheduler.idle, "somebody starves"
        assert self.scheduler.pool.num_held == 0, "blocks leaked"
        self.scheduler.pool.forget_cached()
        self.scheduler.check()
        for request in self.requests.values():
            made = request.tokens[request.num_prompt :]
            alone = generate_alone(
                request.tokens[: request.num_prompt],
                request.params.max_tokens,
                request.stop_ids,
                request.params.min_tokens,
            )
            if request.finish_reason == "cancelled":
                assert made == alone[: len(made)]
            else:
                assert made == alone
                assert request.finish_reason == ("length" if alone[-1] not in request.stop_ids else "stop")


TestTraffic = Traffic.TestCase
# Shrinking a failure takes minutes; `phases` without it shows the failure as found. Add Phase.shrink to debug one.
TestTraffic.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, phases=[Phase.generate]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    jobs=st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=8),
    limits=limits,
    other=limits,
    whole_runs=runs,
)
def test_tokens_do_not_depend_on_company_chunks_preemption_or_pool(
    jobs: list, limits: Limits, other: Limits, whole_runs: tuple[int, ...]
) -> None:
    def run(limits: Limits, together: bool) -> dict[int, list[int]]:
        made: dict[int, list[int]] = {}
        scheduler = Scheduler(limits, LinearTimer() if limits.step_budget_s is not None else None)
        memory = PagedMemory(limits.num_blocks, limits.block_tokens)
        todo = [(number, *job) for number, job in enumerate(jobs)]
        live: dict[int, Request] = {}
        tick = 0
        while todo or live:
            for job in [job for job in todo if job[3] <= tick or not together]:
                number, prompt, max_tokens, _ = job
                rules = SamplingParams(max_tokens=max_tokens)
                request = Request(str(number), prompt, rules, seed=0, eos_ids=EOS, whole_runs=whole_runs)
                try:
                    scheduler.add(request)
                except RequestError as error:
                    if error.status == 400:
                        todo.remove(job)
                    continue
                todo.remove(job)
                live[number] = request
                if not together:
                    break
            batch = scheduler.next_batch(float(tick))
            if batch is not None:
                scheduler.commit(batch, memory.run(batch))
            tick += 1
            for number, request in list(live.items()):
                if request.finish_reason:
                    made[number] = request.tokens[request.num_prompt :]
                    del live[number]
        assert scheduler.pool.num_held == 0
        return made

    first, second = run(limits, True), run(other, False)
    for number in first.keys() & second.keys():
        assert first[number] == second[number]


@pytest.mark.parametrize("num_blocks", [2, 3, 5])
def test_the_fake_memory_notices_a_wrong_table(num_blocks: int) -> None:
    scheduler = Scheduler(
        Limits(num_blocks=num_blocks, block_tokens=2, max_num_seqs=2, max_step_tokens=8, max_context=8, max_waiting=4)
    )
    memory = PagedMemory(num_blocks, 2)
    request = Request("a", [1, 2, 3], SamplingParams(max_tokens=1), seed=0)
    scheduler.add(request)
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    batch.segments[0].start, batch.segments[0].num_tokens = 1, 2  # as if the first token had been cached
    with pytest.raises(AssertionError, match="reads"):
        memory.run(batch)
