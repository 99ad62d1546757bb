"""The step law fitted to one engine: constants come back from times they made, bad data are refused, files carry them."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from ridgepoint.catalog.hardware import Accelerator, accelerator, accelerator_from_table
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.engine_fit import CONSTANTS, EngineFit, fit_engine, predictor, worth_measuring
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.errors import CatalogError, ConfigError
from ridgepoint.sched.step import StepShape

SPEC = model_spec("qwen3-30b-a3b")
SHAPES = [
    *(StepShape([1] * batch, [context] * batch, batch) for batch in (1, 4, 16, 64) for context in (64, 2048)),
    *(StepShape([chunk], [0], 1) for chunk in (64, 512)),
    StepShape([1] * 8 + [256], [512] * 8 + [0], 9),
]


def chip() -> Accelerator:
    return accelerator_from_table("box", {"kind": "cpu", "flops_per_s_bf16": 8e11, "memory_bytes_per_s": 4e10})


def truth(start: Calibration) -> Calibration:
    return start.adjusted(
        memory_efficiency=0.62,
        kv_efficiency=0.4,
        grouped_efficiency=0.8,
        step_overhead_s=2e-3,
        sequence_overhead_s=1e-4,
    )


def fitted(noise: float = 0.0, shown: list[int] | None = None) -> tuple[EngineFit, Calibration, np.ndarray]:
    start = calibration_for(chip(), "serving")
    seconds = np.exp(predictor(SPEC, chip(), Precision(), start, SHAPES)(truth(start)))
    seconds = seconds * np.exp(noise * np.random.default_rng(0).standard_normal(len(SHAPES)))
    shown = shown or worth_measuring(SPEC, chip(), Precision(), start, SHAPES, 7)
    return fit_engine(SPEC, chip(), Precision(), start, SHAPES, seconds.tolist(), shown), start, seconds


def test_times_of_known_constants_are_predicted_again() -> None:
    fit, start, seconds = fitted()
    before = np.abs(predictor(SPEC, chip(), Precision(), start, SHAPES)(start) - np.log(seconds))
    after = np.abs(predictor(SPEC, chip(), Precision(), start, SHAPES)(fit.calibration) - np.log(seconds))
    assert np.median(before) > 0.15 and np.median(after) < 0.03 and after.max() < 0.15
    assert len(fit.log_errors) == len(SHAPES) - 7  # judged by what it was not shown


def test_interval_widens_with_the_noise_of_the_machine() -> None:
    assert fitted(0.0)[0].calibration.uncertainty < fitted(0.2)[0].calibration.uncertainty


def test_a_time_below_physics_is_refused() -> None:
    start = calibration_for(chip(), "serving")
    seconds = [1e-3] * len(SHAPES)
    with pytest.raises(ConfigError, match=r"below the .* that box's peaks allow"):
        fit_engine(SPEC, chip(), Precision(), start, SHAPES, seconds, range(7))


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 5"):
        worth_measuring(SPEC, chip(), Precision(), calibration_for(chip(), "serving"), SHAPES, 4)


def test_hardware_file_carries_the_constants() -> None:
    fit, _, _ = fitted()
    rows = "\n".join(f'{name} = [{value}, "measure_: here"]' for name, value in fit.constants().items())
    text = f'[box]\nkind = "cpu"\nflops_per_s_bf16 = 8e11\nmemory_bytes_per_s = 4e10\n[box.engine]\n{rows}\n'
    read = accelerator_from_table("box", tomllib.loads(text)["box"])
    constants = calibration_for(read, "serving")
    assert {name: getattr(constants, name) for name in CONSTANTS} == pytest.approx(
        {name: getattr(fit.calibration, name) for name in CONSTANTS}
    )
    assert constants.provenance == "measure_: here"
    assert calibration_for(read, "roofline").memory_efficiency == 1.0


def test_unknown_constants_and_texts_are_refused() -> None:
    table = {"kind": "cpu", "memory_bytes_per_s": 4e10}
    with pytest.raises(ConfigError, match="no constant 'memory_efficency'"):
        calibration_for(accelerator_from_table("box", table | {"engine": {"memory_efficency": 0.5}}), "serving")
    with pytest.raises(CatalogError, match="engine must be a table"):
        accelerator_from_table("box", table | {"engine": 3})


def test_chips_like_the_measured_ones_keep_the_fit_and_others_a_wider_interval() -> None:
    like, unlike = calibration_for(accelerator("h100"), "serving"), calibration_for(accelerator("mi300x"), "serving")
    assert unlike.uncertainty > like.uncertainty and "unlike the measured chips" in unlike.provenance
