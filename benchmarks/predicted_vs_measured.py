"""How far are the seconds predicted for a live step from those it takes: before and after `calibrate MODEL`, and following the machine?

Mixed traffic through the engine's real path: random prompts of 16 to 1,024 tokens, answers of 8 to 96, at most `--users` at
once, so that steps of decoding alone, of prompt chunks and of both together occur in the shares that serving gives them. Every
step is priced by two sets of constants: the estimate for a machine nobody measured, and those fitted to a dozen steps of this
engine, none of them from this traffic. Followed, each is priced once more by the speeds that the steps before it showed, as a
server does; what it says of a step follows from the steps before alone, so a replay of shapes and seconds says the same. Every round serves
other prompts, follows from the start again and is judged apart. A second model may be served with the constants fitted to the first
(`--transfer`).

    python benchmarks/predicted_vs_measured.py --model ./moe-1.3b --rounds 3
    python benchmarks/predicted_vs_measured.py --smoke
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import numpy as np

import provenance
import random_checkpoint
from ridgepoint.catalog.hardware import Accelerator, accelerator_from_table
from ridgepoint.cost.following import PARTS, FollowingTimer
from ridgepoint.cost.machine import measure_machine
from ridgepoint.cost.step import Z80
from ridgepoint.cost.timer import CostTimer
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.calibrate import calibrate_engine
from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.prediction import precision_of
from ridgepoint.engine.protocol import Submit
from ridgepoint.engine.source import find_model
from ridgepoint.engine.torch_engine import engine_around, load_decoder
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.step import Batch, Executor, StepResult, StepShape

WARM_STEPS = 5


def tell(line: str) -> None:
    print(line, file=sys.stderr)


class Recorded:
    """An executor, and what its steps were and took."""

    def __init__(self, real: Executor) -> None:
        self._real = real
        self.shapes: list[StepShape] = []
        self.seconds: list[float] = []

    def run(self, batch: Batch) -> StepResult:
        shape = batch.shape
        result = self._real.run(batch)
        self.shapes.append(shape)
        self.seconds.append(result.seconds)
        return result


def serve_traffic(core: EngineCore, users: int, requests: int, longest: int, seed: int) -> Recorded:
    """Every step's shape and measured seconds."""
    rng, steps = random.Random(seed), Recorded(core.executor)
    core = EngineCore(core.facts, core.scheduler, steps)
    sent = 0
    while sent < requests or not core.idle:
        while sent < requests and len(core.scheduler.running) + len(core.scheduler.waiting) < users:
            prompt = [rng.randrange(2, core.facts.vocab_size) for _ in range(rng.randint(min(16, longest), longest))]
            params = SamplingParams(max_tokens=rng.randint(8, 96), ignore_eos=True)
            core.handle(Submit(request_id=f"{seed}-{sent}", prompt_ids=prompt, params=params))
            sent += 1
        core.step()
        core.take_outbox()
    return steps


def errors(predicted: np.ndarray, measured: np.ndarray, uncertainty: float) -> dict[str, float]:
    """Fractions of the measured time; `coverage` is the share of steps inside the constants' 80 % interval."""
    log = np.log(predicted / measured)
    return {
        "median_frac": float(np.median(np.abs(predicted / measured - 1))),
        "p90_frac": float(np.quantile(np.abs(predicted / measured - 1), 0.9)),
        "bias_frac": float(np.expm1(np.median(log))),
        "total_frac": float(predicted.sum() / measured.sum() - 1),
        "coverage": float(np.mean(np.abs(log) <= Z80 * uncertainty)),
    }


def judge(steps: Recorded, timers: dict[str, CostTimer]) -> dict[str, Any]:
    """One round, by each set of constants."""
    judged, measured = steps.shapes[WARM_STEPS:], np.array(steps.seconds[WARM_STEPS:])
    decode = np.array([max(shape.new_tokens) == 1 for shape in judged])
    kinds = {"all": np.ones_like(decode), "decode": decode, "with prompts": ~decode}
    result: dict[str, Any] = {"steps": len(judged), "decode_steps": int(decode.sum())}
    for name, timer in timers.items():
        promised = np.array([timer.seconds(shape).seconds for shape in judged])
        floor = np.array([float(timer.seconds(shape).cost.floor_s) for shape in judged])
        followed, speeds = follow(timer, steps)
        sigma = timer.calibration.uncertainty
        for told, predicted in ((name, promised), (f"{name}, followed", followed[WARM_STEPS:])):
            result[told] = {
                kind: errors(predicted[which], measured[which], sigma) if which.any() else None
                for kind, which in kinds.items()
            }
        result[name]["floor_over_measured"] = float(floor.sum() / measured.sum())
        result[f"{name}, followed"]["speed"] = {  # over the round, of what the constants say: 10, 50 and 90 %
            part: np.quantile(speeds[WARM_STEPS:, i], (0.1, 0.5, 0.9)).tolist() for i, part in enumerate(PARTS)
        }
    return result


def follow(timer: CostTimer, steps: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """What a server would have said of every step before it ran, and the machine's speeds it said that by."""
    following, said, speeds = FollowingTimer(timer), [], []
    for shape, seconds in zip(steps.shapes, steps.seconds, strict=True):
        step = following.seconds(shape)
        said.append(step.seconds)
        speeds.append(list(following.speed.relative.values()))
        following.learn(step, seconds)
    return np.array(said), np.array(speeds)


def engine_of(model: str, options: EngineOptions) -> tuple[Any, EngineCore]:
    decoder = load_decoder(Path(options.model), options, tell)
    return decoder, engine_around(decoder, options, tell, name=model, eos_ids=())


def options_for(model: str, arguments: argparse.Namespace) -> EngineOptions:
    return EngineOptions(
        model=str(find_model(model).folder), weight_format=arguments.weight_format, kv_bytes=1 << 30, prefix_cache=False
    )


def measured_chip(arguments: argparse.Namespace) -> tuple[Accelerator, Accelerator, dict[str, Any]]:
    """This machine without and with the constants of its engine, and what the fit said of itself."""
    machine = measure_machine("this-machine", budget_s=0.05 if arguments.smoke else 0.3)
    table = tomllib.loads(machine.to_toml())["this-machine"]
    bare = accelerator_from_table("this-machine", table)
    fitted = calibrate_engine(options_for(arguments.model, arguments), bare, points=arguments.points, announce=tell)
    tell(fitted.summary)
    return bare, dataclasses.replace(bare, measure_engine=fitted.fit.constants()), {
        "machine": machine.to_dict(), **fitted.to_dict()
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """One line a model, kind of step and set of constants; over several rounds the least and the most of each figure."""
    rows = [["model", "steps", "constants", "median error", "p90", "of all seconds", "in 80 % interval"]]
    for model, rounds in result["models"].items():
        for kind in ("decode", "with prompts"):
            for constants in ("unmeasured", "unmeasured, followed", "calibrated", "calibrated, followed"):
                found = [judged[constants][kind] for judged in rounds if judged[constants][kind] is not None]
                if found:
                    cells = [("median_frac", ".1%"), ("p90_frac", ".1%"), ("total_frac", "+.1%")]
                    if "followed" not in constants:  # the interval is the constants'
                        cells.append(("coverage", ".0%"))
                    figures = [span([f[name] for f in found], form) for name, form in cells]
                    rows.append([model, kind, constants, *figures, *[""] * (4 - len(figures))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *(seen(model, rounds) for model, rounds in result["models"].items())])


def span(values: list[float], form: str) -> str:
    ends = format(min(values), form), format(max(values), form)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def seen(model: str, rounds: list[dict[str, Any]]) -> str:
    """How fast the machine was while it served."""
    speeds = [judged["calibrated, followed"]["speed"] for judged in rounds]
    told = (f"{part} {min(s[part][0] for s in speeds):.2f} to {max(s[part][2] for s in speeds):.2f}" for part in PARTS)
    return f"{model}, {len(rounds)} rounds: 8 of 10 steps met speeds, over the calibrated ones, of " + ", ".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="checkpoint folder; default: one made up for this run")
    parser.add_argument("--transfer", nargs="*", default=[], help="other models served with the same constants")
    parser.add_argument("--weight-format", default=None)
    parser.add_argument("--points", type=int, default=12, help="steps the constants are fitted to")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1, help="of traffic, each judged apart")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model and few requests: seconds, figures mean nothing"
    )
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.requests, arguments.users = 6, 4
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model is None:
            arguments.model = folder
            random_checkpoint.write(Path(folder), random_checkpoint.SMOKE if arguments.smoke else None)
        bare, chip, fitted = measured_chip(arguments)
        models: dict[str, list[dict[str, Any]]] = {}
        for model in (arguments.model, *arguments.transfer):
            decoder, core = engine_of(model, options_for(model, arguments))
            precision = precision_of(decoder)
            timers = {
                name: CostTimer(decoder.spec, hardware, precision, calibration_for(hardware, "serving"))
                for name, hardware in (("unmeasured", bare), ("calibrated", chip))
            }
            name = "smoke" if arguments.smoke else Path(model).name
            longest = min(1024, core.scheduler.limits.max_context - 97)
            models[name] = [
                judge(serve_traffic(core, arguments.users, arguments.requests, longest, seed), timers)
                for seed in range(arguments.rounds)
            ]
    result = {**provenance.provenance(__doc__), "calibration": fitted, "models": models}
    provenance.save(arguments.json, result)
    print(table(result))
    judged = [one["calibrated, followed"]["all"]["median_frac"] for rounds in models.values() for one in rounds]
    return 0 if all(map(math.isfinite, judged)) else 1


if __name__ == "__main__":
    sys.exit(main())
