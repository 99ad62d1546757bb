"""An executor that takes predicted seconds and computes nothing."""

from __future__ import annotations

from ridgepoint.sched.step import Batch, StepResult, StepTimer
from ridgepoint.sim.clock import SimulatedClock

FILLER = 0  # every sampled token; simulated requests end by their length alone


class SimExecutor:
    def __init__(self, timer: StepTimer, clock: SimulatedClock) -> None:
        self._timer, self._clock = timer, clock

    def run(self, batch: Batch) -> StepResult:
        predicted = batch.predicted or self._timer.seconds(batch.shape)
        seconds = predicted.seconds
        self._clock.advance(seconds)
        return StepResult([FILLER] * sum(segment.wants_sample for segment in batch.segments), seconds)
