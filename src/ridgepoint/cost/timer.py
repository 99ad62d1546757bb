"""The step law as the scheduler asks it: seconds of a step, given how many tokens each sequence adds to how many.

`CostTimer` is what `sched` calls a `StepTimer`, without either knowing the other. Equal steps are priced once: the shape is
reduced to the groups that `StepBatch.from_segments` makes, and the last few thousand of those are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.step import StepCost, step_cost


class Shape(Protocol):
    """`sched.step.StepShape`."""

    @property
    def new_tokens(self) -> Sequence[int]: ...

    @property
    def cached_tokens(self) -> Sequence[int]: ...

    @property
    def num_samples(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StepParts:
    """Calibrated seconds of a step by what they are spent on: per kernel of computing and of moving bytes, each as if it were
    alone (what both take together is their soft maximum), and of everything else."""

    kernels: tuple[tuple[float, float], ...]
    overhead_s: float
    overlap_power: float


@dataclass(frozen=True, slots=True)
class TimedStep:
    """Seconds as one number, which is what the scheduler reads, the calibrated estimate behind it, and what that consists of."""

    seconds: float
    cost: StepCost
    parts: StepParts

    @property
    def calibrated_s(self) -> float:
        return float(self.cost.seconds)


class CostTimer:
    """Predicts steps of `spec` on `hardware`. Monotone: a step with more tokens is never predicted to be shorter."""

    def __init__(
        self,
        spec: ModelSpec,
        hardware: Accelerator,
        precision: Precision,
        calibration: Calibration,
        layout: Layout | None = None,
    ) -> None:
        self.spec, self.hardware, self.precision, self.calibration = spec, hardware, precision, calibration
        self.layout = layout or Layout()
        self._price = lru_cache(maxsize=4096)(self._price_groups)

    def seconds(self, shape: Shape) -> TimedStep:
        """The predicted step."""
        return self._price(_groups(shape), shape.num_samples)

    def _price_groups(self, groups: _Groups, num_samples: int) -> TimedStep:
        batch = _batch(groups, num_samples)
        cost = step_cost(self.spec, self.hardware, self.layout, self.precision, batch, self.calibration)
        return TimedStep(float(cost.seconds), cost, self._parts(cost))

    def _parts(self, cost: StepCost) -> StepParts:
        kernels = ((float(kernel.compute_s), float(kernel.memory_s)) for kernel in cost.kernels)
        overhead_s = sum(float(term.seconds) for term in cost.terms if not term.flop_type)
        return StepParts(tuple(pair for pair in kernels if max(pair) > 0), overhead_s, self.calibration.overlap_power)


_Groups = tuple[tuple[int, int, int], ...]  # (new tokens, sequences, cached tokens of all of them)


def batch_of(shape: Shape) -> StepBatch:
    """The step as the law sees it. Sequences alike in new tokens, and in cached ones to within a factor of two, share a group."""
    return _batch(_groups(shape), shape.num_samples)


def _groups(shape: Shape) -> _Groups:
    groups: dict[tuple[int, int], tuple[int, int]] = {}
    for new, cached in zip(shape.new_tokens, shape.cached_tokens, strict=True):
        bucket = (new, cached.bit_length())
        count, total = groups.get(bucket, (0, 0))
        groups[bucket] = (count + 1, total + cached)
    return tuple((new, count, total) for (new, _), (count, total) in sorted(groups.items()))


def _batch(groups: _Groups, num_samples: int) -> StepBatch:
    sequences = sum(count for _, count, _ in groups)
    logits = num_samples / sequences  # a sequence that does not reach its last token wants none
    return StepBatch(
        groups=tuple(
            Group(count=count, new=float(new), cached=total / count, logits=logits) for new, count, total in groups
        )
    )
