"""Constants of the step law for one engine on one machine, from steps it was seen to take.

`worth_measuring` says which of many shapes to time; `fit_engine` bends the calibration one starts from to those times and says
how far the result misses shapes it was not shown, which is the interval's width from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.fewshot import Predict, choose_points
from ridgepoint.cost.fitting import Group, fit
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.step import StepCost, price_step
from ridgepoint.cost.timer import Shape, batch_of
from ridgepoint.errors import ConfigError

CONSTANTS = (
    "memory_efficiency", "kv_efficiency", "matmul_efficiency", "grouped_efficiency", "attention_efficiency", "step_overhead_s",
    "kernel_overhead_s", "sequence_overhead_s",
)  # fmt: skip
PRIOR_SD = 1.0  # encoded units: an unmeasured machine's constants are known to a factor of e at best
NOISE = 0.05  # repeatability of a step
LEAST_UNCERTAINTY = 0.03  # no interval narrower than the same step repeated
MIN_POINTS = 5


@dataclass(frozen=True, kw_only=True)
class EngineFit:
    """`log_errors` are predicted over measured of the shapes the fit was not shown, natural log."""

    calibration: Calibration
    shown: tuple[int, ...]
    log_errors: NDArray[np.float64]

    @property
    def median_error_frac(self) -> float:
        return float(np.median(np.abs(np.expm1(self.log_errors)))) if len(self.log_errors) else math.nan

    def constants(self) -> dict[str, float]:
        """What belongs into a hardware file's `engine` table."""
        return {name: getattr(self.calibration, name) for name in (*CONSTANTS, "uncertainty")}


def predictor(
    spec: ModelSpec, chip: Accelerator, precision: Precision, start: Calibration, shapes: Sequence[Shape]
) -> Predict:
    """log seconds of every shape under a calibration; what the shapes amount to is counted once."""
    amounts = [
        step_amounts(spec, Layout(), precision, batch_of(shape), routing_skew=start.routing_skew, tiles=start.tiles)
        for shape in shapes
    ]

    def log_seconds(constants: Calibration) -> NDArray[np.float64]:
        return np.log(np.array([float(price_step(amount, chip, constants).seconds) for amount in amounts]))

    return log_seconds


def worth_measuring(
    spec: ModelSpec, chip: Accelerator, precision: Precision, start: Calibration, shapes: Sequence[Shape], count: int
) -> list[int]:
    """The `count` shapes whose measurement leaves least doubt about all of them."""
    if count < MIN_POINTS:
        raise ConfigError(f"a step law is fitted to at least {MIN_POINTS} steps, got {count}")
    return [
        int(i) for i in choose_points(predictor(spec, chip, precision, start, shapes), start, CONSTANTS, count=count)
    ]


def fit_engine(
    spec: ModelSpec,
    chip: Accelerator,
    precision: Precision,
    start: Calibration,
    shapes: Sequence[Shape],
    measured_s: Sequence[float],
    shown: Sequence[int],
) -> EngineFit:
    """Fit to `measured_s[i]` for i in `shown`; the other shapes judge it. Raises `ConfigError` where a measured time is below
    the floor that `chip`'s roofs set: then it is the roofs that are wrong."""
    for shape, seconds in zip(shapes, measured_s, strict=True):
        _gate(spec, chip, precision, start, shape, seconds)
    log_measured = np.log(np.asarray(measured_s, dtype=float))
    chosen = list(shown)
    group = Group(predictor(spec, chip, precision, start, [shapes[i] for i in chosen]), log_measured[chosen])
    constants = fit([group], start, CONSTANTS, prior_sd=PRIOR_SD, noise=NOISE).calibration()
    unseen = [i for i in range(len(shapes)) if i not in set(chosen)]
    judged = unseen or chosen
    errors = predictor(spec, chip, precision, start, [shapes[i] for i in judged])(constants) - log_measured[judged]
    spread = max(LEAST_UNCERTAINTY, float(np.sqrt(np.mean(errors**2))))
    return EngineFit(calibration=constants.adjusted(uncertainty=spread), shown=tuple(chosen), log_errors=errors)


def _gate(
    spec: ModelSpec, chip: Accelerator, precision: Precision, start: Calibration, shape: Shape, seconds: float
) -> None:
    """No step may beat its arithmetic, nor the weights that one token alone must read: the law's own floor expects the experts
    of uniform routing, and tokens of one prompt may share more of them."""

    def priced(batch: StepBatch) -> StepCost:
        return price_step(step_amounts(spec, Layout(), precision, batch), chip, start)

    arithmetic_s = sum(
        float(term.flops) / chip.spec_flops_per_s[term.flop_type]
        for term in priced(batch_of(shape)).terms
        if term.flop_type
    )
    floor_s = max(arithmetic_s, float(priced(StepBatch.decode(1, 0)).floor_s))
    if seconds < floor_s:
        raise ConfigError(
            f"a step of {sum(shape.new_tokens)} tokens took {seconds:.3g} s, below the {floor_s:.3g} s that {chip.id}'s peaks allow",
            hint="state this machine's own peaks: ridgepoint calibrate",
        )
