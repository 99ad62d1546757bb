"""Power, joules per token and step time against a measured table of serving energy, on held-out models and held-out chips.

    python benchmarks/power_vs_measured.py [--json out.json]

The energy constants (static watts, joules per byte and per FLOP) are fitted on the other models; the step law comes with the
shipped constants of the engine that was measured, whose table these rows are not part of, times one factor for its older version, taken
from the other models. The table does not state prompt lengths:
`PROMPT_TOKENS` assumes them by task. Step time is batch over throughput (the table's median inter-token latency falls at very large
batches while the step grows).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

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
            batch = float(raw["avg_batch"]) * dp
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


def summary(log_error: np.ndarray) -> dict[str, float]:
    relative = np.abs(np.exp(log_error) - 1)
    return {
        "points": len(relative),
        "median_frac": float(np.median(relative)),
        "p90_frac": float(np.percentile(relative, 90)),
        "bias_frac": float(np.median(np.exp(log_error) - 1)),
    }


def held_out(found: list[Point], key: Any) -> dict[str, Any]:
    power, joules, step = [], [], []
    parts = {}
    for value in sorted({key(p) for p in found}):
        train, test = [p for p in found if key(p) != value], [p for p in found if key(p) == value]
        fitted, slower = fit(train), engine_factor(train)
        seconds = np.array([float(p.cost.estimate_tpot_s) for p in test]) * slower
        watts = np.array([float(p.cost.estimate_w(fitted, seconds=s)) for p, s in zip(test, seconds, strict=True)])
        per_token = watts * seconds / np.array([p.batch for p in test])
        power.append(np.log(watts / np.array([p.measure_w for p in test])))
        joules.append(np.log(per_token / np.array([p.measure_j_per_token for p in test])))
        step.append(np.log(seconds / np.array([p.measure_step_s for p in test])))
        parts[value] = summary(power[-1])
    return {
        "power": summary(np.concatenate(power)),
        "j_per_token": summary(np.concatenate(joules)),
        "step": summary(np.concatenate(step)),
        "held_out_power": parts,
    }


def engine_factor(found: list[Point]) -> float:
    """How much slower this table's engine is than the shipped constants say: one number, the median over models of their medians."""
    by_model: dict[str, list[float]] = defaultdict(list)
    for point in found:
        by_model[point.model].append(float(np.log(point.measure_step_s / float(point.cost.estimate_tpot_s))))
    return float(np.exp(np.median([np.median(values) for values in by_model.values()])))


def fit(found: list[Point]) -> EnergyModel:
    """Fitted with the *measured* step time, so that watts are not bent to repair seconds."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in found:
        groups[(point.model, point.chip.id)].append(point)
    weight = np.array([len(groups[(p.model, p.chip.id)]) ** -0.5 for p in found])
    return fit_energy(
        [p.cost for p in found],
        np.array([p.measure_step_s for p in found]),
        np.array([p.measure_w for p in found]),
        ENERGY_BEFORE_FIT,
        weight,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not available():
        print(f"no measured tables at {data_dir()}; set RIDGEPOINT_DATA", file=sys.stderr)
        return 2
    found, left = points()
    whole = fit(found)
    result = {
        "points": len(found), "left_out": dict(left), "leave_one_model_out": held_out(found, lambda p: p.model),
        "engine_factor_on_all": engine_factor(found), "leave_one_chip_out": held_out(found, lambda p: p.chip.id), "fitted_on_all": vars(whole), "shipped": vars(DEFAULT_ENERGY),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
