"""How far is the plan from the machine? Held-out errors of the cost model on measured serving and energy, and what its picks cost.

    python benchmarks/plan_vs_measured.py                # everything, a few minutes on one core
    python benchmarks/plan_vs_measured.py --json out.json
    python benchmarks/plan_vs_measured.py --fast         # one fit a fold, spreads as written before any fit
    python benchmarks/plan_vs_measured.py --smoke        # a few rows: does it run

Nothing is fitted on the held-out side (`held_out.py`): each fold fits the shared constants on the other models (or systems) and predicts
the one left out; interval widths and the margin of a pick come from an inner leave-one-out among the training rows. Five-shot: the
method asks for five points of a held-out deployment, adjusts, and is judged on the rest of it. Picks (`picks.py`): in each (model,
system, workload) group the planner chooses among the measured configurations without seeing their times; `regret.py` says why a pick costs
more than the best and what it could cost at least. Energy: `power_vs_measured.py`, the same way.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import power_vs_measured
import provenance
from figures import coverage, error_summary, rank_correlation
from held_out import Folds, Predictions, by_model, by_system, drop_unplaceable, five_shot, leave_one_out, predict
from measured_rows import Row, available, data_dir, gated, serving_rows
from picks import (
    all_limits,
    excess_by_spread,
    goals,
    groups_of,
    outcomes,
    picks_differ_by,
    quartiles,
    summary,
    what_costs,
)
from regret import by_whose_error, grid_step, shared_error_alone, taken_apart, why_missed
from ridgepoint.cost.calibration import BEFORE_FIT, ROOFLINE

LIMITS = {"goals": goals, "all_limits": all_limits, "quartiles": quartiles}
SMOKE_MODELS = ("gpt-oss-120b", "minimax-m2.5")


def version_noise(rows: Sequence[Row]) -> dict[str, float]:
    """What no model without the version can beat: ratio of the slowest to the fastest version of one configuration."""
    same: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        layout = (row.layout.tp, row.layout.dp_attention, row.layout.ep)
        same[(*row.deployment, layout, row.concurrency, row.input_tokens, row.output_tokens)][row.version].append(
            row.measure_tpot_s
        )
    ratios = [
        max(np.median(v) for v in versions.values()) / min(np.median(v) for v in versions.values())
        for versions in same.values() if len(versions) > 1
    ]  # fmt: skip
    if not ratios:
        return {"configurations": 0}
    return {
        "configurations": len(ratios), "median_ratio": float(np.median(ratios)),
        "p90_ratio": float(np.percentile(ratios, 90)),
    }  # fmt: skip


def summarise(predictions: Predictions) -> dict[str, Any]:
    groups = groups_of(predictions)
    return {
        **{what: error_summary(predictions.log_error(what)) for what in ("tpot", "ttft", "tokens_per_s")},
        "coverage_80_tpot": coverage(predictions.log_error("tpot"), predictions.sigma),
        "coverage_80_ttft": coverage(predictions.log_error("ttft"), predictions.sigma_ttft),
        "rank_correlation": {
            "tpot": rank_correlation((g.measured_s, g.predicted_s) for g in groups),
            "cost": rank_correlation((g.cost(g.measured_s), g.cost(g.predicted_s)) for g in groups),
        },
        "picks": {name: summary(outcomes(groups, limits)) for name, limits in LIMITS.items()},
    }  # fmt: skip


def measure(rows: list[Row], *, fast: bool) -> dict[str, Any]:
    """Every protocol on these rows, gated and not."""
    kept, refused = gated(rows)
    kept, unplaceable = drop_unplaceable(kept)
    result: dict[str, Any] = {
        "rows": {"refused": dict(refused), "does_not_fit": unplaceable, "used": len(kept)},
        "version_noise": version_noise(kept),
        "roofline": summarise(predict(kept, lambda _: ROOFLINE)), "before_fit": summarise(predict(kept, lambda _: BEFORE_FIT)),
    }  # fmt: skip
    models = Folds(kept, by_model)
    pooled, parts = leave_one_out(models, nested=not fast)
    groups = groups_of(pooled)
    result["leave_one_model_out"] = {**summarise(pooled), "held_out": parts}
    result["what_the_excess_is"] = {name: what_costs(groups, LIMITS[name]) for name in ("goals", "all_limits")}
    result["picks_differ_by"] = {name: picks_differ_by(groups, LIMITS[name]) for name in ("goals", "all_limits")}
    result["excess_by_spread"] = {name: excess_by_spread(groups, LIMITS[name]) for name in ("goals", "all_limits")}
    result["regret"] = {
        name: {
            "taken_apart": taken_apart(groups, limits), "why_missed": why_missed(groups, limits), "grid_step": grid_step(groups, limits),
            "by_whose_error": by_whose_error(groups, limits), "shared_error_alone": shared_error_alone(groups, limits),
        }
        for name, limits in LIMITS.items()
    }  # fmt: skip
    report, informed = five_shot(models)
    informed_groups = groups_of(informed)
    report["picks"] = {name: summary(outcomes(informed_groups, limits)) for name, limits in LIMITS.items()}
    result["five_shot"] = report
    pooled, parts = leave_one_out(Folds(kept, by_system), nested=not fast)
    result["leave_one_system_out"] = {**summarise(pooled), "held_out": parts}
    plain, lost = drop_unplaceable(rows)
    pooled, _ = leave_one_out(Folds(plain, by_model), nested=not fast)
    result["without_gate"] = {"does_not_fit": lost, **summarise(pooled)}
    return result


# ---------------------------------------------------------------- the printed table


def _percent(share: float) -> str:
    return f"{share:.1%}" if abs(share) < 10 else f"{share:.0f}x"


def _error(part: dict[str, float]) -> str:
    return f"{_percent(part['median_frac'])} / {_percent(part['p90_frac'])}"


def _picks(part: dict[str, Any]) -> list[str]:
    kept = [str(part["limits"]), f"{part['keeps_limit_frac']:.1%}"]
    if part["median_excess_cost_frac"] is None:
        return [*kept, "-", "-", "-"]
    low, high = part["median_excess_cost_interval"]
    return [
        *kept, f"{part['median_excess_cost_frac']:+.1%}", f"{low:+.0%} to {high:+.0%}", f"{part['mean_excess_cost_frac']:+.1%}",
    ]  # fmt: skip


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


READINGS = {"goals": "round limits", "all_limits": "20 a decade", "quartiles": "quartiles"}


def _regret(result: dict[str, Any]) -> list[str]:
    """Why picks cost more than the best one, and what predictors that err by one part alone could reach."""
    parts = result["regret"]
    apart = [["mean log excess of kept picks, by cause", "margin", "shared error", "ranking", "all", "next row costs"]]
    for reading, label in READINGS.items():
        found = parts[reading]["taken_apart"]
        values = [f"{found[cause]:.3f}" for cause in ("margin", "shared error", "ranking", "all")]
        apart.append([f"  {label}", *values, f"{parts[reading]['grid_step']['median_step_frac']:+.0%}"])
    head = [f"{label}: keep, cost (margin)" for label in READINGS.values()]
    reach = [["least margin that keeps 90 %, in hindsight", "spread", *head]]
    rows = {
        name: [parts[reading]["by_whose_error"][name] for reading in READINGS]
        for name in parts["goals"]["by_whose_error"]
    }
    rows["drawn shared errors, perfect ranking"] = [parts[reading]["shared_error_alone"] for reading in READINGS]
    for name, found in rows.items():
        cells = [
            f"{part['keeps_limit_frac']:.1%}, {part['median_excess_cost_frac']:+.1%} ({part['margin']:.2f})"
            for part in found
        ]
        reach.append([f"  {name}", f"{found[0]['spread']:.3f}", *cells])
    missed = [
        f"  {label}: the best was "
        + ", ".join(f"{why} {share:.0%}" for why, share in parts[reading]["why_missed"].items())
        for reading, label in READINGS.items()
    ]
    return [*_aligned(apart), *missed, "", *_aligned(reach)]


PROTOCOLS = {
    "roofline": "bare roofline", "before_fit": "before any fit", "leave_one_model_out": "models not seen",
    "leave_one_system_out": "chips not seen", "without_gate": "models not seen, no gate",
}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Errors as median / 90th percentile, then energy, then what picks keep and cost, then the noise nobody can fit."""
    errors = [["errors, median / p90", "rows", "TPOT", "TTFT", "tokens/s", "80 % holds", "rank TPOT", "rank cost"]]
    for key, label in PROTOCOLS.items():
        part = result[key]
        rank = part["rank_correlation"]
        errors.append(
            [
                label, str(part["tpot"]["rows"]), _error(part["tpot"]), _error(part["ttft"]), _error(part["tokens_per_s"]),
                f"{part['coverage_80_tpot']:.1%}", f"{rank['tpot']:.2f}", f"{rank['cost']:.2f}",
            ]
        )  # fmt: skip
    after = result["five_shot"]["after"]
    errors.append(["  after five points each", str(after["rows"]), _error(after), "", "", "", "", ""])
    energy = [["energy, median / p90", "points", "power", "J/token", "step time"]]
    for key, label in (("leave_one_model_out", "models not seen"), ("leave_one_chip_out", "chips not seen")):
        part = result["energy"][key]
        energy.append([label, str(part["power"]["rows"]), *(_error(part[k]) for k in ("power", "j_per_token", "step"))])
    lines = [*_aligned(errors), "", *_aligned(energy), ""]
    picks = [["cheapest pick under a TPOT limit", "limits", "keep it", "cost over best", "80 % interval", "mean"]]
    for key, label in (*PROTOCOLS.items(), ("five_shot", "after five points each")):
        picks.append([label, *_picks(result[key]["picks"]["goals"])])
    unseen = result["leave_one_model_out"]["picks"]
    picks.append(["models not seen, 20 limits a decade", *_picks(unseen["all_limits"])])
    known = result["five_shot"]["picks"]["all_limits"]
    picks.append(["after five points each, 20 limits a decade", *_picks(known)])
    picks.append(["models not seen, limits at quartiles", *_picks(unseen["quartiles"])])
    for name, part in result["what_the_excess_is"]["all_limits"].items():
        picks.append([f"  20 a decade: {name}", *_picks(part)])
    differs = result["picks_differ_by"]["all_limits"]
    by = ", ".join(f"{kind} {part['limits_frac']:.0%}" for kind, part in differs.items())
    noise = result["version_noise"]
    last = f"engine versions alone: {noise['configurations']} configurations"
    if noise["configurations"]:
        last += f", slowest over fastest {noise['median_ratio']:.2f} median, {noise['p90_ratio']:.2f} p90"
    differ = f"  20 a decade: picks differ from the best by {by}"
    return "\n".join([*lines, *_aligned(picks), differ, "", *_regret(result), "", last])


def brief(result: dict[str, Any]) -> str:
    """Models and chips not seen, and what five measured points bring."""
    lines = [["errors, median / p90", "TPOT", "TTFT", "tokens/s", "80 % holds"]]
    for key in ("leave_one_model_out", "leave_one_system_out"):
        part = result[key]
        errors = (_error(part[kind]) for kind in ("tpot", "ttft", "tokens_per_s"))
        lines.append([PROTOCOLS[key], *errors, f"{part['coverage_80_tpot']:.1%}"])
    lines.append(["after five points each", _error(result["five_shot"]["after"]), "", "", ""])
    picks = [["cheapest pick under a TPOT limit", "limits", "keep it", "cost over best", "80 % interval"]]
    for key in ("leave_one_model_out", "leave_one_system_out"):
        part = result[key]["picks"]
        readings = [reading for reading in READINGS if reading in part]
        picks += [[f"{PROTOCOLS[key]}, {READINGS[r]}", *_picks(part[r])[:-1]] for r in readings]
    return "\n".join([*_aligned(lines), "", *_aligned(picks)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--fast", action="store_true", help="no inner folds: spreads as written before any fit")
    parser.add_argument("--smoke", action="store_true", help="a few rows of two models, to see that it runs")
    arguments = parser.parse_args()
    if not available():
        print(f"no measured tables at {data_dir()}; set RIDGEPOINT_DATA", file=sys.stderr)
        return 2
    rows, left = serving_rows()
    if arguments.smoke:
        rows = [row for row in rows if row.model in SMOKE_MODELS and row.input_tokens == row.output_tokens]
    result = {
        **provenance.provenance(__doc__), "total_rows": len(rows) + sum(left.values()), "not_in_catalogue": dict(left),
        **measure(rows, fast=arguments.fast or arguments.smoke), "energy": power_vs_measured.measure(),
    }  # fmt: skip
    provenance.save(arguments.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
