"""How fast this machine is now against the day it was calibrated, learned from the steps it takes.

    seconds(step) = sum over kernels of soft_max(compute_s / speed of compute, memory_s / speed of memory) + overhead_s / speed of overhead

The calibrated law says what a step has of each part; three speeds, 1 where nothing changed, say how those parts go today. Memory that
others use too halves and doubles within minutes, and no constant fitted before serving can know. The state is the logs of the
slownesses, so that no speed is ever non-positive, and its estimate an extended Kalman filter over the logs of measured seconds:

- knowledge fades towards the prior's spread with the seconds that steps should take (`FADE_S`), and with steps where those are short
  (`FADE_STEPS`), never past it: a part that no step has shown for hours is as uncertain as at the start, no more, and keeps the speed
  it had (stabilised forgetting);
- a step far off what the state and a step's repeatability allow moves the state no further than one at that bound, and adds nothing to
  what is known (Masreliez and Martin, 1977): one preempted step hardly moves it, ten slow ones are a slow machine.

Nothing of a step is used before it has been measured, and the speeds follow from the sequence of steps alone: no clock, no chance.
"""

from __future__ import annotations

import math

from ridgepoint.cost.timer import CostTimer, Shape, StepParts, TimedStep

PARTS = ("compute", "memory", "overhead")
SPREAD = 0.3  # log scale: how far the speed of a part strays from the calibrated one
FADE_S = 10.0  # of steps, after which all but 1/e of what was known has faded: the machine changes with time
FADE_STEPS = 100  # at the latest: what a step consists of changes with steps, and the law errs by what it consists of
NOISE = 0.05  # log scale: repeatability of a step
FAR = 2.0  # standard deviations, past which a step says no more


class MachineSpeed:
    """The filter. Three parts are three numbers, and plain Python takes a fifth of numpy's time for those."""

    def __init__(self) -> None:
        self._state = [0.0] * len(PARTS)
        self._slowness = [1.0] * len(PARTS)  # exp of the state
        self._covariance = [[SPREAD**2 * (row == column) for column in range(len(PARTS))] for row in range(len(PARTS))]

    @property
    def relative(self) -> dict[str, float]:
        """The speed of each part over the calibrated one."""
        return {part: 1.0 / slowness for part, slowness in zip(PARTS, self._slowness, strict=True)}

    def seconds(self, parts: StepParts) -> float:
        """What the step would take now. Never falls when a part of it grows."""
        compute, memory, overhead = self._slowness
        total = parts.overhead_s * overhead
        for compute_s, memory_s in parts.kernels:
            total += _together(compute_s * compute, memory_s * memory, parts.overlap_power)[0]
        return total

    def learn(self, parts: StepParts, measured_s: float) -> None:
        """A step took so long. A clock too coarse to see it (0 s) says nothing."""
        if not measured_s > 0:
            return
        seconds, shares = self._sensitivity(parts)
        self._fade(math.exp(-max(seconds / FADE_S, 1.0 / FADE_STEPS)))
        weighed = [sum(c * share for c, share in zip(row, shares, strict=True)) for row in self._covariance]
        variance = sum(w * share for w, share in zip(weighed, shares, strict=True)) + NOISE**2
        surprise, bound = math.log(measured_s / seconds), FAR * math.sqrt(variance)
        if abs(surprise) > bound:
            surprise = math.copysign(bound, surprise)
        else:
            self._covariance = [
                [c - w * other / variance for c, other in zip(row, weighed, strict=True)]
                for row, w in zip(self._covariance, weighed, strict=True)
            ]
        self._state = [z + w * surprise / variance for z, w in zip(self._state, weighed, strict=True)]
        self._slowness = [math.exp(z) for z in self._state]

    def _fade(self, kept: float) -> None:
        for index, row in enumerate(self._covariance):
            for other in range(len(row)):
                row[other] *= kept
            row[index] += (1.0 - kept) * SPREAD**2

    def _sensitivity(self, parts: StepParts) -> tuple[float, list[float]]:
        """The step's seconds now, and the derivatives of their log by the state: their shares by part, whose sum is 1."""
        compute, memory, overhead = self._slowness
        by_compute, by_memory, by_overhead = 0.0, 0.0, parts.overhead_s * overhead
        for compute_s, memory_s in parts.kernels:
            seconds, share = _together(compute_s * compute, memory_s * memory, parts.overlap_power)
            by_compute += seconds * share
            by_memory += seconds * (1.0 - share)
        total = by_compute + by_memory + by_overhead
        return total, [by_compute / total, by_memory / total, by_overhead / total]


def _together(compute_s: float, memory_s: float, power: float) -> tuple[float, float]:
    """The soft maximum of the two times of a kernel (`arrays.soft_max`), and the share of it that grows with the first."""
    if compute_s > memory_s:
        ratio = 1.0 + (memory_s / compute_s) ** power
        return compute_s * ratio ** (1.0 / power), 1.0 / ratio
    ratio = 1.0 + (compute_s / memory_s) ** power
    return memory_s * ratio ** (1.0 / power), 1.0 - 1.0 / ratio


class FollowingTimer:
    """A `CostTimer` whose seconds are those of the machine as it is now; `TimedStep.cost` stays what was calibrated."""

    def __init__(self, timer: CostTimer) -> None:
        self.calibrated, self.speed = timer, MachineSpeed()

    def seconds(self, shape: Shape) -> TimedStep:
        """The predicted step."""
        step = self.calibrated.seconds(shape)
        return TimedStep(self.speed.seconds(step.parts), step.cost, step.parts)

    def learn(self, step: TimedStep, measured_s: float) -> None:
        """The step that was predicted has been measured."""
        self.speed.learn(step.parts, measured_s)
