"""How far are the seconds the cost model predicts for a live step from those it takes, before and after `calibrate MODEL`?

Mixed traffic through the engine's real path: random prompts of 16 to 1,024 tokens, answers of 8 to 96, at most `--users` at
once, so that steps of decoding alone, of prompt chunks and of both together occur in the shares that serving gives them. Every
step is priced by two sets of constants: the estimate for a machine nobody measured, and those fitted to a dozen steps of this
engine, none of them from this traffic. A second model may be served with the constants fitted to the first (`--transfer`).

    python benchmarks/predicted_vs_measured.py --model ./moe-1.3b
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
from ridgepoint.sched.step import StepShape

WARM_STEPS = 5


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def serve_traffic(core: EngineCore, users: int, requests: int, longest: int) -> tuple[list[StepShape], list[float]]:
    """Every step's shape and measured seconds."""
    rng = random.Random(0)
    shapes: list[StepShape] = []
    seconds: list[float] = []
    run = core.executor.run

    def recorded(batch: Any) -> Any:
        shape = batch.shape
        result = run(batch)
        shapes.append(shape)
        seconds.append(result.seconds)
        return result

    core.executor.run = recorded  # type: ignore[method-assign]
    sent = 0
    while sent < requests or not core.idle:
        while sent < requests and len(core.scheduler.running) + len(core.scheduler.waiting) < users:
            prompt = [rng.randrange(2, core.facts.vocab_size) for _ in range(rng.randint(min(16, longest), longest))]
            params = SamplingParams(max_tokens=rng.randint(8, 96), ignore_eos=True)
            core.handle(Submit(request_id=f"r{sent}", prompt_ids=prompt, params=params))
            sent += 1
        core.step()
        core.take_outbox()
    return shapes[WARM_STEPS:], seconds[WARM_STEPS:]


def errors(predicted: np.ndarray, measured: np.ndarray, uncertainty: float) -> dict[str, float]:
    """Fractions of the measured time; `coverage` is the share of steps inside the 80 % interval."""
    log = np.log(predicted / measured)
    return {
        "median_frac": float(np.median(np.abs(predicted / measured - 1))),
        "p90_frac": float(np.quantile(np.abs(predicted / measured - 1), 0.9)),
        "bias_frac": float(np.expm1(np.median(log))),
        "total_frac": float(predicted.sum() / measured.sum() - 1),
        "coverage": float(np.mean(np.abs(log) <= Z80 * uncertainty)),
    }


def judge(core: EngineCore, timers: dict[str, CostTimer], arguments: argparse.Namespace) -> dict[str, Any]:
    limits = core.scheduler.limits
    longest = min(1024, limits.max_context - 97)
    shapes, seconds = serve_traffic(core, arguments.users, arguments.requests, longest)
    measured = np.array(seconds)
    decode = np.array([max(shape.new_tokens) == 1 for shape in shapes])
    result: dict[str, Any] = {"steps": len(shapes), "decode_steps": int(decode.sum())}
    for name, timer in timers.items():
        predicted = np.array([timer.seconds(shape).seconds for shape in shapes])
        floor = np.array([float(timer.seconds(shape).cost.floor_s) for shape in shapes])
        sigma = timer.calibration.uncertainty
        result[name] = {
            "all": errors(predicted, measured, sigma),
            "decode": errors(predicted[decode], measured[decode], sigma) if decode.any() else None,
            "with prompts": errors(predicted[~decode], measured[~decode], sigma) if (~decode).any() else None,
            "floor_over_measured": float(floor.sum() / measured.sum()),
        }
    return result


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
    """One line a model, kind of step and set of constants."""
    rows = [["model", "steps", "constants", "median error", "p90", "of all seconds", "in 80 % interval"]]
    for model, judged in result["models"].items():
        for constants in ("unmeasured", "calibrated"):
            for kind in ("all", "decode", "with prompts"):
                found = judged[constants][kind]
                if found is not None:
                    rows.append(
                        [model, kind, constants, f"{found['median_frac']:.1%}", f"{found['p90_frac']:.1%}", f"{found['total_frac']:+.1%}", f"{found['coverage']:.0%}"]
                    )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="checkpoint folder; default: one made up for this run")
    parser.add_argument("--transfer", nargs="*", default=[], help="other models served with the same constants")
    parser.add_argument("--weight-format", default=None)
    parser.add_argument("--points", type=int, default=12, help="steps the constants are fitted to")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48)
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
        models: dict[str, Any] = {}
        for model in (arguments.model, *arguments.transfer):
            decoder, core = engine_of(model, options_for(model, arguments))
            precision = precision_of(decoder)
            timers = {
                name: CostTimer(decoder.spec, hardware, precision, calibration_for(hardware, "serving"))
                for name, hardware in (("unmeasured", bare), ("calibrated", chip))
            }
            name = "smoke" if arguments.smoke else Path(model).name
            models[name] = judge(core, timers, arguments)
    result = {**provenance.provenance(__doc__), "calibration": fitted, "models": models}
    provenance.save(arguments.json, result)
    print(table(result))
    return 0 if all(math.isfinite(judged["calibrated"]["all"]["median_frac"]) for judged in models.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
