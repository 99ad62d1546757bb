"""How far off are power and joules per token? The energy model against a measured table, on held-out models and held-out chips.

    python benchmarks/power_vs_measured.py [--json out.json]

The energy constants (static watts, joules per byte and per FLOP) are fitted on the other models. The step law comes with the shipped
constants of the engine that was measured, whose table these rows are not part of; what an older version of it adds, a
factor and host seconds per sequence and step, is fitted on the other models too. The table does not state prompt lengths:
`PROMPT_TOKENS` assumes them by task. Step time is batch over throughput (the table's median inter-token latency falls at very large
batches while the step grows); its batch counts all data-parallel ranks together.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import provenance
from figures import error_summary
from measured_rows import available, data_dir, precision_of, read, short_name
from ridgepoint.catalog.hardware import Accelerator, accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost.calibration import calibration
from ridgepoint.cost.energy import DEFAULT_ENERGY, ENERGY_BEFORE_FIT, EnergyModel, fit_energy
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.serving import ClosedLoop, ServingCost, price_serving, serving_amounts
from ridgepoint.errors import PlanError, RidgepointError

PROMPT_TOKENS = {"lm-arena-chat": 300.0, "gpqa": 250.0, "sourcegraph-fim": 500.0}
PRECISION = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4"}


@dataclass(frozen=True)
class Point:
    model: str
    chip: Accelerator
    cost: ServingCost
    batch: float
    measure_w: float
    measure_j_per_token: float
    measure_step_s: float


def points() -> tuple[list[Point], Counter[str]]:
    found: list[Point] = []
    left: Counter[str] = Counter()
    constants = calibration("serving-vllm")
    for raw in read("energy_measured.csv"):
        model = short_name(raw["model_id"])
        try:
            spec, chip = model_spec(model), accelerator(raw["gpu"])
            precision = precision_of(model, PRECISION[raw["precision"]], "vllm", chip)
            chips, dp, ep = int(raw["num_gpus"]), int(raw["dp"]), int(raw["ep"])
            layout = Layout(tp=float(chips // dp), dp_attention=float(dp), ep=float(ep))
            batch = float(raw["avg_batch"])
            load = ClosedLoop(
                input_tokens=PROMPT_TOKENS[raw["task"]],
                output_tokens=float(raw["avg_output_len"]),
                concurrency=max(batch, 1.0),
            )
            cost = price_serving(
                serving_amounts(spec, chip, layout, precision, load, routing_skew=constants.routing_skew),
                chip,
                constants,
            )
        except (PlanError, RidgepointError) as error:
            left[str(error).split(" (hint")[0][:80]] += 1
            continue
        step = batch / float(raw["tok_s"])
        if step < float(cost.decode.floor_s):
            left["below the physical floor"] += 1
            continue
        found.append(
            Point(model, chip, cost, batch, float(raw["avg_power_w_total"]), float(raw["joule_per_token"]), step)
        )
    return found, left


@dataclass(frozen=True)
class OlderEngine:
    """What the measured engine's version takes beyond the shipped constants: a factor on the device's seconds, and host seconds
    for every sequence of a rank's step (sampling, detokenising, scheduling, one after another)."""

    factor: float
    sequence_s: float

    def step_s(self, point: Point) -> float:
        per_rank = point.batch / float(point.cost.decode.layout.dp_attention)
        return self.factor * float(point.cost.estimate_tpot_s) + self.sequence_s * per_rank


FACTORS = np.exp(np.arange(-0.2, 0.8, 0.02))
SEQUENCE_S = np.arange(0.0, 120e-6, 2e-6)


def weights(found: Sequence[Point]) -> np.ndarray:
    """A deployment weighs by the square root of its number of points."""
    groups = Counter((point.model, point.chip.id) for point in found)
    return np.array([groups[(point.model, point.chip.id)] ** -0.5 for point in found])


def fit_engine(found: Sequence[Point]) -> OlderEngine:
    """Least robust log error over a grid of both constants."""
    estimate = np.array([float(point.cost.estimate_tpot_s) for point in found])
    per_rank = np.array([point.batch / float(point.cost.decode.layout.dp_attention) for point in found])
    measured = np.array([point.measure_step_s for point in found])
    step = FACTORS[:, None, None] * estimate + SEQUENCE_S[None, :, None] * per_rank
    loss = (weights(found) * np.sqrt(1 + (np.log(step / measured) / 0.15) ** 2)).sum(axis=-1)
    best = np.unravel_index(int(loss.argmin()), loss.shape)
    return OlderEngine(float(FACTORS[best[0]]), float(SEQUENCE_S[best[1]]))


def fit(found: Sequence[Point]) -> EnergyModel:
    """Fitted with the *measured* step time, so that watts are not bent to repair seconds."""
    return fit_energy(
        [p.cost for p in found],
        np.array([p.measure_step_s for p in found]),
        np.array([p.measure_w for p in found]),
        ENERGY_BEFORE_FIT,
        weights(found),
    )


def held_out(found: Sequence[Point], key: Callable[[Point], str]) -> dict[str, Any]:
    """Errors when each value of `key` is predicted by constants fitted on the others; `power_at_measured_step` takes the step
    time as known, which leaves the energy law alone."""
    errors: dict[str, list[np.ndarray]] = defaultdict(list)
    parts = {}
    for value in sorted({key(p) for p in found}):
        train, test = [p for p in found if key(p) != value], [p for p in found if key(p) == value]
        energy, engine = fit(train), fit_engine(train)
        measured_s, measured_w = (np.array([getattr(p, f"measure_{name}") for p in test]) for name in ("step_s", "w"))
        seconds = np.array([engine.step_s(p) for p in test])
        watts, known = (
            np.array([float(p.cost.estimate_w(energy, seconds=s)) for p, s in zip(test, at, strict=True)])
            for at in (seconds, measured_s)
        )
        per_token = watts * seconds / np.array([p.batch for p in test])
        errors["power"].append(np.log(watts / measured_w))
        errors["power_at_measured_step"].append(np.log(known / measured_w))
        errors["j_per_token"].append(np.log(per_token / np.array([p.measure_j_per_token for p in test])))
        errors["step"].append(np.log(seconds / measured_s))
        parts[value] = {name: error_summary(values[-1]) for name, values in errors.items()}
    return {**{name: error_summary(np.concatenate(values)) for name, values in errors.items()}, "held_out": parts}


def measure() -> dict[str, Any]:
    found, left = points()
    return {
        "points": len(found), "left_out": dict(left), "leave_one_model_out": held_out(found, lambda p: p.model),
        "leave_one_chip_out": held_out(found, lambda p: p.chip.id), "engine_on_all": vars(fit_engine(found)),
        "fitted_on_all": vars(fit(found)), "shipped": vars(DEFAULT_ENERGY),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = [f"{'median / p90':24} {'points':>6} {'power':>15} {'J/token':>15} {'step time':>15}"]
    for key, label in (("leave_one_model_out", "models not seen"), ("leave_one_chip_out", "chips not seen")):
        part = result[key]
        cells = [f"{part[k]['median_frac']:.1%} / {part[k]['p90_frac']:.1%}" for k in ("power", "j_per_token", "step")]
        lines.append(f"{label:24} {part['power']['rows']:6d} " + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not available():
        print(f"no measured tables at {data_dir()}; set RIDGEPOINT_DATA", file=sys.stderr)
        return 2
    result = {**provenance.provenance(__doc__), **measure()}
    provenance.save(arguments.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
