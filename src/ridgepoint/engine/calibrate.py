"""Fits the step law to this engine on this machine: load a model, time the steps that tell most, hand back the constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.engine_fit import EngineFit, fit_engine, worth_measuring
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.kv_dtype import kv_dtype_of
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.prediction import precision_of
from ridgepoint.engine.step_times import measure_steps, shapes_within
from ridgepoint.engine.torch_engine import engine_around, load_decoder
from ridgepoint.models.source import resolve
from ridgepoint.sched.step import StepShape

NUM_JUDGES = 6  # shapes that are measured only to judge the fit


@dataclass(frozen=True, kw_only=True)
class FittedEngine:
    """The fit, and the measured steps behind it: those it was shown first, then those that judge it."""

    fit: EngineFit
    shapes: Sequence[StepShape]
    median_s: Sequence[float]

    @property
    def summary(self) -> str:
        shown, judges = len(self.fit.shown), len(self.shapes) - len(self.fit.shown)
        return f"fitted to {shown} steps, {self.fit.median_error_frac:.1%} median error on {judges} others"

    def to_toml(self, chip: str, source: str) -> str:
        """The `engine` table of a hardware file."""
        quoted = source.replace('"', "'")
        rows = [f'{name} = [{value:.4g}, "{quoted}"]' for name, value in self.fit.constants().items()]
        return "\n".join(["", f"[{chip}.engine]", *rows]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            "constants": self.fit.constants(),
            "median_error_frac": self.fit.median_error_frac,
            "steps": [
                {
                    "new_tokens": sum(shape.new_tokens), "sequences": len(shape.new_tokens), "cached_tokens": sum(shape.cached_tokens),
                    "measure_s": seconds, "shown": index in set(self.fit.shown),
                }
                for index, (shape, seconds) in enumerate(zip(self.shapes, self.median_s, strict=True))
            ],
        }  # fmt: skip


def calibrate_engine(
    options: EngineOptions, chip: Accelerator, *, points: int, announce: Callable[[str], None]
) -> FittedEngine:
    """Constants of the step law fitted to `points` steps of `options.model`, judged by `NUM_JUDGES` others."""
    decoder = load_decoder(resolve(options.model), options, announce)
    core = engine_around(decoder, options, announce, name=options.model, eos_ids=())
    precision, start = precision_of(decoder, kv_dtype_of(options, decoder)), calibration_for(chip, options.calibration)
    candidates = shapes_within(core.scheduler.limits)
    shown = worth_measuring(decoder.spec, chip, precision, start, candidates, min(points, len(candidates)))
    unseen = [i for i in range(len(candidates)) if i not in set(shown)]
    judges = [unseen[int(i)] for i in np.linspace(0, len(unseen) - 1, min(NUM_JUDGES, len(unseen)))]
    shapes = [candidates[i] for i in (*shown, *judges)]
    median_s = measure_steps(core, shapes, progress=announce)
    fit = fit_engine(decoder.spec, chip, precision, start, shapes, median_s, range(len(shown)))
    return FittedEngine(fit=fit, shapes=shapes, median_s=median_s)
