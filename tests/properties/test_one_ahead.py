"""A scheduler that launches a step before the last one is read: the same tokens, nothing leaks, nobody starves."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from paged_memory import PagedMemory, generate_alone
from test_scheduler_properties import EOS, LinearTimer, limits, params, prompts, runs

from ridgepoint.errors import RequestError
from ridgepoint.sched.ahead import InTurn, OneAhead
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import UNKNOWN, Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, StepResult


@dataclass
class Later:
    result: StepResult
    is_known: bool
    events: list[str]
    name: str

    def wait(self) -> StepResult:
        self.events.append(f"read {self.name}")
        return self.result


@dataclass
class Device:
    """Like a stream of a device: steps are carried out in the order of their launch, from what the host knew then, and a
    token the host did not know is the last one sampled in the request's row. `known` are steps read on launch."""

    memory: PagedMemory
    known: set[int] = field(default_factory=set)
    last: dict[int, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def submit(self, batch: Batch) -> Later:
        name = str(self.memory.steps)
        self.events.append(f"launch {name}")
        for segment in batch.segments:
            request = segment.request
            if request.tokens[-1] == UNKNOWN:
                assert segment.start == len(request.tokens) - 1, "only the token to compute may be unknown"
                request.tokens[-1] = self.last[request.row]  # what the device reads; the host forgets it again below
        result = self.memory.run(batch)
        sampled = iter(result.token_ids)
        for segment in batch.segments:
            if segment.wants_sample:
                self.last[segment.request.row] = next(sampled)
        return Later(result, int(name) in self.known, self.events, name)


class Forgetful(Device):
    """Puts `UNKNOWN` back, so that nobody can read a token early."""

    def submit(self, batch: Batch) -> Later:
        unknown = [segment.request for segment in batch.segments if segment.request.tokens[-1] == UNKNOWN]
        later = super().submit(batch)
        for request in unknown:
            request.tokens[-1] = UNKNOWN
        return later


@settings(max_examples=150, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    jobs=st.lists(st.tuples(prompts, params, st.integers(0, 6)), min_size=1, max_size=8),
    limits=limits,
    whole_runs=runs,
    known=st.sets(st.integers(0, 30), max_size=6),
    cancels=st.sets(st.tuples(st.integers(0, 7), st.integers(1, 25)), max_size=3),
)
def test_tokens_are_those_of_the_definition(
    jobs: list[tuple[list[int], SamplingParams, int]],
    limits: Limits,
    whole_runs: tuple[int, ...],
    known: set[int],
    cancels: set[tuple[int, int]],
) -> None:
    scheduler = Scheduler(limits, LinearTimer() if limits.step_budget_s is not None else None)
    pace = OneAhead(Forgetful(PagedMemory(limits.num_blocks, limits.block_tokens), known), scheduler.advance)
    taken: list[Request] = []
    for tick in range(3000):
        for number, (prompt, rules, at) in enumerate(jobs):
            if at == tick:
                request = Request(str(number), prompt, rules, seed=0, eos_ids=EOS, whole_runs=whole_runs)
                try:
                    scheduler.add(request)
                except RequestError:
                    continue
                taken.append(request)
        for number, at in cancels:
            if at == tick:
                scheduler.cancel(str(number))
        for batch, result in pace.push(scheduler.next_batch(float(tick))):
            for progress in scheduler.commit(batch, result):
                assert progress.request.finish_reason == progress.finish_reason
        scheduler.check()
        if tick > 6 and scheduler.idle and not pace.in_flight:
            break
    assert scheduler.idle and not pace.in_flight, "somebody starves"
    assert scheduler.pool.num_held == 0
    for request in taken:
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


def test_a_step_leaves_before_the_one_before_it_is_read() -> None:
    scheduler = Scheduler(
        Limits(num_blocks=8, block_tokens=4, max_num_seqs=2, max_step_tokens=16, max_context=32, max_waiting=2)
    )
    device = Forgetful(PagedMemory(8, 4))
    pace = OneAhead(device, scheduler.advance)
    scheduler.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=4), seed=0))
    while not scheduler.idle:
        for batch, result in pace.push(scheduler.next_batch(0.0)):
            scheduler.commit(batch, result)
    assert device.events == [
        "launch 0", "launch 1", "read 0", "launch 2", "read 1", "launch 3", "read 2", "read 3",
    ]  # fmt: skip


def test_a_step_whose_result_is_known_is_not_run_ahead_of() -> None:
    scheduler = Scheduler(
        Limits(num_blocks=8, block_tokens=4, max_num_seqs=2, max_step_tokens=16, max_context=32, max_waiting=2)
    )
    device = Forgetful(PagedMemory(8, 4), known={0, 1, 2, 3})
    pace = OneAhead(device, scheduler.advance)
    scheduler.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=3), seed=0))
    while not scheduler.idle:
        for batch, result in pace.push(scheduler.next_batch(0.0)):
            scheduler.commit(batch, result)
    assert device.events == ["launch 0", "read 0", "launch 1", "read 1", "launch 2", "read 2"]
    assert not pace.in_flight


def test_in_turn_hands_back_what_it_was_given() -> None:
    memory = PagedMemory(8, 4)
    pace = InTurn(memory)
    scheduler = Scheduler(
        Limits(num_blocks=8, block_tokens=4, max_num_seqs=2, max_step_tokens=16, max_context=32, max_waiting=2)
    )
    assert pace.push(None) == [] and not pace.in_flight
    scheduler.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=1), seed=0))
    batch = scheduler.next_batch(0.0)
    ((done, result),) = pace.push(batch)
    assert done is batch and len(result.token_ids) == 1
