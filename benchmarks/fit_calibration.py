"""Which constants does the measured table give? Refits the calibrations the package ships (`cost/calibrations.toml`).

    python benchmarks/fit_calibration.py            # print them
    python benchmarks/fit_calibration.py --write    # and ship them

`serving` is the middle of all engines, `serving-<engine>` that engine's own offsets. `tuned` is a well-tuned engine: the same law fitted
to the lower decile of times instead of the middle (one quantile for all rows, no offsets, nothing chosen by hand), so that about a
tenth of measured deployments are as fast. Published best submissions are not in the table: they test it.
Uncertainties are held-out residual scales of `serving`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from held_out import deployments, drop_unplaceable, stated_spreads, unseen_models
from measured_rows import Row, available, data_dir, gated, serving_rows
from ridgepoint.cost.calibration import BEFORE_FIT, Calibration
from ridgepoint.cost.closed_loop_fit import fit_closed_loop

TARGET = Path(__file__).resolve().parents[1] / "src" / "ridgepoint" / "cost" / "calibrations.toml"
TUNED_QUANTILE = 0.1
TUNED_NOISE = 0.05  # a quantile needs a loss that is sharp at zero


def calibrations(rows: list[Row]) -> list[Calibration]:
    spreads = dict(zip(("uncertainty", "ttft_uncertainty"), stated_spreads(unseen_models(rows)), strict=True))
    priced = [deployment for _, deployment in deployments(rows)]
    fitted = fit_closed_loop(priced, BEFORE_FIT)
    source = f"measure_: fitted to {len(rows)} points of aggregated serving on H100, H200, B200"
    found = [replace(fitted.calibration().adjusted(**spreads), name="serving", provenance=source + ", all engines")]
    for engine in sorted({row.engine for row in rows}):
        own = fitted.calibration((f"engine:{engine}",)).adjusted(**spreads)
        found.append(replace(own, name=f"serving-{engine}", provenance=f"{source} by {engine}"))
    unlabelled = [replace(deployment, labels=()) for deployment in priced]
    tuned = fit_closed_loop(unlabelled, BEFORE_FIT, noise=TUNED_NOISE, quantile=TUNED_QUANTILE)
    fastest = f"{source}, all engines, at the {TUNED_QUANTILE:.0%} quantile of times: a well-tuned engine"
    found.append(replace(tuned.calibration().adjusted(**spreads), name="tuned", provenance=fastest))
    return found


def to_toml(found: list[Calibration]) -> str:
    lines = [
        "# Fitted constants of the step law and of waiting. Written by `python benchmarks/fit_calibration.py --write`.",
        "# What software reaches of peaks; never facts about a chip. Uncertainties are held-out residual scales.", "",
    ]  # fmt: skip
    for constants in found:
        lines += [f'["{constants.name}"]', f'provenance = "{constants.provenance}"']
        lines += [
            f"{name} = {value:.4g}" for name, value in sorted(vars(constants).items()) if isinstance(value, float)
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the package's constants")
    arguments = parser.parse_args()
    if not available():
        print(f"no measured tables at {data_dir()}; set RIDGEPOINT_DATA", file=sys.stderr)
        return 2
    kept, _ = gated(serving_rows()[0])
    kept, _ = drop_unplaceable(kept)
    text = to_toml(calibrations(kept))
    print(text)
    if arguments.write:
        TARGET.write_text(text)
        print(f"wrote {TARGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
