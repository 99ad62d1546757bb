"""What this process's steps took, beside what physics and the cost model said they would take: running totals.

Predicted seconds are the calibrated ones, which a plan promised; followed ones those that the scheduler was told, of the machine as it
was at that step. Both were said before the step ran.

Totals and not ratios, so that a reader may divide them over any span. Only steps with a prediction are entered. Joules are
the cost model's; dollars are rent for the seconds that steps really took. Either is None where a fact is unknown.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress

from ridgepoint.cost.step import ROOFS, StepCost
from ridgepoint.cost.timer import TimedStep
from ridgepoint.engine.protocol import RATIO_EDGES, StepTotals
from ridgepoint.errors import CatalogError
from ridgepoint.sched.step import Batch, StepResult


class StepLedger:
    def __init__(self) -> None:
        self._steps = 0
        self._measured_s = self._predicted_s = self._followed_s = self._floor_s = 0.0
        self._roof_s = dict.fromkeys(ROOFS, 0.0)
        self._ratio_counts = [0] * (len(RATIO_EDGES) + 1)
        self._followed_counts = [0] * (len(RATIO_EDGES) + 1)
        self._joules: float | None = None
        self._usd: float | None = None

    def enter(self, batch: Batch, result: StepResult) -> None:
        predicted = batch.predicted
        if not isinstance(predicted, TimedStep):
            return
        cost = predicted.cost
        self._steps += 1
        self._measured_s += result.seconds
        self._predicted_s += predicted.calibrated_s
        self._followed_s += predicted.seconds
        self._floor_s += float(cost.floor_s)
        for roof in ROOFS:
            self._roof_s[roof] += float(cost.roof_s[roof])
        self._ratio_counts[_place(predicted.calibrated_s, result.seconds)] += 1
        self._followed_counts[_place(predicted.seconds, result.seconds)] += 1
        self._pay(cost, result.seconds)

    def _pay(self, cost: StepCost, seconds: float) -> None:
        with suppress(CatalogError):  # power unknown: no joules
            self._joules = (self._joules or 0.0) + float(cost.estimate_j)
        rent = cost.hardware.usd_per_hour
        if rent is not None:
            self._usd = (self._usd or 0.0) + float(cost.layout.chips) * rent * seconds / 3600.0

    def totals(self) -> StepTotals | None:
        """None before the first prediction."""
        if not self._steps:
            return None
        return StepTotals(
            steps=self._steps, measured_s=self._measured_s, predicted_s=self._predicted_s, followed_s=self._followed_s, floor_s=self._floor_s,
            roof_s=dict(self._roof_s), ratio_counts=list(self._ratio_counts), followed_counts=list(self._followed_counts),
            joules=self._joules, usd=self._usd,
        )  # fmt: skip


def _place(predicted_s: float, measured_s: float) -> int:
    """The count that this ratio belongs to."""
    return bisect_left(RATIO_EDGES, predicted_s / max(measured_s, 1e-9))
