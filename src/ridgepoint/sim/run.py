"""The simulator's heart. Read it beside `engine.core`: the same scheduler, the same three calls, another clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ridgepoint.errors import RequestError
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.request import Request
from ridgepoint.sched.scheduler import Limits, Scheduler
from ridgepoint.sched.step import Batch, StepTimer
from ridgepoint.sim.clock import SimulatedClock
from ridgepoint.sim.executor import SimExecutor
from ridgepoint.sim.traffic import Arrival, prompt_ids


@dataclass(kw_only=True)
class Served:
    """What happened to one arrival. `refused` says why it was turned away; then nothing else happened."""

    arrival: Arrival
    refused: str | None = None
    admitted_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def simulate_ttft_s(self) -> float:
        """From arrival to the first token."""
        return self.token_times_s[0] - self.arrival.at_s

    @property
    def simulate_tpot_s(self) -> float:
        """Mean time between tokens; 0 for a single token."""
        return (self.token_times_s[-1] - self.token_times_s[0]) / max(1, len(self.token_times_s) - 1)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """All arrivals in order, and the time and work it took."""

    served: list[Served]
    end_s: float
    num_steps: int
    busy_s: float
    computed_tokens: int
    preemptions: int

    def percentiles(self, name: str, which: tuple[float, ...] = (50, 90, 99)) -> dict[float, float]:
        """Of `simulate_ttft_s` or `simulate_tpot_s`, over those that were served."""
        values = [getattr(one, name) for one in self.served if one.refused is None]
        return dict(zip(which, np.percentile(values, which).tolist(), strict=True)) if values else {}

    @property
    def simulate_output_tokens_per_s(self) -> float:
        return sum(len(one.token_times_s) for one in self.served) / self.end_s if self.end_s else 0.0


def simulate(
    arrivals: Iterable[Arrival],
    limits: Limits,
    timer: StepTimer,
    *,
    whole_runs: tuple[int, ...] = (),
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> Simulation:
    """Serve `arrivals` on one replica that takes as long as `timer` says. `whole_runs`: as in `Request`."""
    clock = SimulatedClock()
    scheduler = Scheduler(limits, timer)
    executor = SimExecutor(timer, clock)
    served = [Served(arrival=arrival) for arrival in sorted(arrivals, key=lambda arrival: arrival.at_s)]
    to_come = deque(enumerate(served))
    num_steps, busy_s = 0, 0.0
    while to_come or not scheduler.idle:
        if scheduler.idle:
            clock.advance_to(to_come[0][1].arrival.at_s)
        while to_come and to_come[0][1].arrival.at_s <= clock.now():
            _arrive(scheduler, *to_come.popleft(), whole_runs)
        batch = scheduler.next_batch(clock.now())
        if batch is None:
            continue  # everyone who came was refused
        on_batch(batch)
        result = executor.run(batch)
        for progress in scheduler.commit(batch, result):
            one = served[int(progress.request.id)]
            one.token_times_s.append(clock.now())
            one.admitted_s, one.cached_tokens = progress.request.admitted_s, progress.request.cached_tokens
            one.num_preemptions = progress.request.num_preemptions
        num_steps, busy_s = num_steps + 1, busy_s + result.seconds
    return Simulation(
        served=served, end_s=clock.now(), num_steps=num_steps, busy_s=busy_s,
        computed_tokens=scheduler.computed_tokens_total, preemptions=scheduler.preemptions_total,
    )  # fmt: skip


def _arrive(scheduler: Scheduler, number: int, one: Served, whole_runs: tuple[int, ...]) -> None:
    params = SamplingParams(max_tokens=one.arrival.output_tokens, ignore_eos=True)
    request = Request(
        str(number), prompt_ids(one.arrival, number), params,
        seed=0, whole_runs=whole_runs, arrived_s=one.arrival.at_s,
    )  # fmt: skip
    try:
        scheduler.add(request)
    except RequestError as error:
        one.refused = error.message
