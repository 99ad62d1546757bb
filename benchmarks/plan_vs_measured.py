"""How far is the plan from the machine? Held-out error of the cost model on measured serving and energy tables.

    python benchmarks/plan_vs_measured.py                # everything, a few minutes on one core
    python benchmarks/plan_vs_measured.py --json out.json
    python benchmarks/plan_vs_measured.py --write-calibration   # refit the shipped constants on all gated rows

Nothing is fitted on the held-out side: each fold fits the global constants on the other models (or systems) and predicts the one
left out. Intervals are made from residuals of an inner leave-one-model-out on the training side alone. Five-shot: the method asks
for five points of a held-out deployment, adjusts, and is judged on the rest of it. Regret: in each (model, system, workload)
group and for several latency limits, the planner picks among the measured configurations without seeing their times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import provenance
from measured_rows import Row, available, data_dir, gated, serving_rows
from ridgepoint.cost.calibration import BEFORE_FIT, ROOFLINE, Calibration
from ridgepoint.cost.closed_loop_fit import STEP_CONSTANTS, Deployment, LoopFit, fit_closed_loop, log_tpot
from ridgepoint.cost.fewshot import adjust, choose_points
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.serving import ClosedLoop, price_serving, serving_amounts
from ridgepoint.errors import PlanError

TURNOVER = 0.1  # these benchmarks send about ten requests per client and count the first wave
MARGIN_Z = 0.8416212335729143  # a pick must keep the limit with 80 % probability


# ---------------------------------------------------------------- rows -> deployments


def deployments(rows: Iterable[Row]) -> list[tuple[list[Row], Deployment]]:
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[(*row.deployment, row.precision, bool(np.any(row.layout.pp > 1)))].append(row)
    result = []
    for members in grouped.values():
        first = members[0]
        column = lambda read, members=members: np.array([float(read(row)) for row in members])  # noqa: E731
        layout = Layout(
            tp=column(lambda r: r.layout.tp), dp_attention=column(lambda r: r.layout.dp_attention), ep=column(lambda r: r.layout.ep),
            pp=column(lambda r: r.layout.pp),
        )  # fmt: skip
        load = ClosedLoop(
            input_tokens=column(lambda r: r.input_tokens), output_tokens=column(lambda r: r.output_tokens),
            concurrency=column(lambda r: r.concurrency), turnover_frac=TURNOVER,
        )  # fmt: skip
        amounts = serving_amounts(
            first.spec, first.hardware, layout, first.precision, load, routing_skew=BEFORE_FIT.routing_skew
        )
        result.append(
            (members, Deployment(first.hardware, amounts, (f"engine:{first.engine}",),
                                 np.log(column(lambda r: r.measure_tpot_s)), np.log(column(lambda r: r.measure_ttft_s))))
        )  # fmt: skip
    return result


def drop_unplaceable(rows: list[Row]) -> tuple[list[Row], int]:
    """Rows whose model does not fit on the stated chips at all cannot be priced; they are counted, not forced."""
    kept = []
    for row in rows:
        try:
            load = ClosedLoop(
                input_tokens=row.input_tokens, output_tokens=row.output_tokens, concurrency=row.concurrency
            )
            serving_amounts(row.spec, row.hardware, row.layout, row.precision, load)
        except PlanError:
            continue
        kept.append(row)
    return kept, len(rows) - len(kept)


class Predictions:
    """Rows with predicted TPOT and TTFT and the log-scale spread of each."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.tpot: list[float] = []
        self.ttft: list[float] = []
        self.sigma: list[float] = []
        self.sigma_ttft: list[float] = []

    def extend(self, rows: list[Row], deployment: Deployment, calibration: Calibration) -> None:
        cost = price_serving(deployment.amounts, deployment.hardware, calibration)
        n = len(rows)
        self.rows += rows
        self.tpot += list(np.broadcast_to(cost.estimate_tpot_s, n))
        self.ttft += list(np.broadcast_to(cost.estimate_ttft_s, n))
        self.sigma += [calibration.uncertainty] * n
        self.sigma_ttft += [calibration.ttft_uncertainty] * n

    def log_error(self, what: str = "tpot") -> np.ndarray:
        measured = np.array([row.measure_tpot_s if what == "tpot" else row.measure_ttft_s for row in self.rows])
        return np.log(np.array(getattr(self, what)) / measured)


# ---------------------------------------------------------------- figures


def error_summary(log_error: np.ndarray) -> dict[str, float]:
    relative = np.abs(np.exp(log_error) - 1)
    return {
        "rows": len(relative), "median_frac": float(np.median(relative)), "p90_frac": float(np.percentile(relative, 90)),
        "bias_frac": float(np.median(np.exp(log_error) - 1)),
    }  # fmt: skip


def spread_of(log_error: np.ndarray) -> float:
    """Scale whose +-1.2816 holds 80 % of the residuals, whatever their shape."""
    return float(np.percentile(np.abs(log_error), 80) / 1.2815515655446004)


def ranks(values: np.ndarray) -> np.ndarray:
    order = values.argsort()
    result = np.empty(len(values))
    result[order] = np.arange(len(values), dtype=float)
    for value in np.unique(values):
        same = values == value
        result[same] = result[same].mean()
    return result


def rank_correlation(predictions: Predictions) -> float:
    """Median over (model, system, workload) groups of Spearman's correlation of TPOT."""
    found = []
    for members in _groups(predictions).values():
        if len(members) < 4:
            continue
        measured = ranks(np.array([predictions.rows[i].measure_tpot_s for i in members]))
        predicted = ranks(np.array([predictions.tpot[i] for i in members]))
        if measured.std() and predicted.std():
            found.append(float(np.corrcoef(measured, predicted)[0, 1]))
    return float(np.median(found))


def _groups(predictions: Predictions) -> dict[tuple[Any, ...], list[int]]:
    grouped: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(predictions.rows):
        grouped[(row.model, row.hardware.id, row.input_tokens, row.output_tokens)].append(index)
    return grouped


GOALS_S = (0.010, 0.020, 0.030, 0.050, 0.100)  # what users ask for: 100, 50, 33, 20 and 10 tokens a second


def quartiles(measured: np.ndarray) -> list[float]:
    """The hardest limits: each lies at or beside a measured time, so the best pick has no slack at all."""
    return [float(np.percentile(measured, quantile)) for quantile in (25, 50, 75)]


def goals(measured: np.ndarray) -> list[float]:
    """The round goals at least one and not every configuration of the group meets."""
    return [goal for goal in GOALS_S if (measured <= goal).any() and (measured > goal).any()]


def regret(predictions: Predictions, limits: Callable[[np.ndarray], list[float]], *, margin: bool) -> dict[str, float]:
    """For each group's TPOT limits: does the pick keep the limit, and at what cost over the best measured configuration?

    With `margin` the pick's time must lie under the limit with 80 % probability; otherwise its best estimate must.
    Where nothing is predicted to keep the limit, the fastest prediction is picked (the closest feasible plan).
    """
    z = MARGIN_Z if margin else 0.0
    kept, excess = 0, []
    total = 0
    for members in _groups(predictions).values():
        if len(members) < 4:
            continue
        measured = np.array([predictions.rows[i].measure_tpot_s for i in members])
        cost = np.array([predictions.rows[i].cost_chip_s for i in members])
        predicted = np.array([predictions.tpot[i] for i in members])
        planned_cost = cost * predicted / measured  # chips and clients are the planner's; the time is its own
        pessimistic = predicted * np.exp(z * np.array([predictions.sigma[i] for i in members]))
        for limit in limits(measured):
            feasible = pessimistic <= limit
            pick = int(np.where(feasible, planned_cost, np.inf).argmin()) if feasible.any() else int(predicted.argmin())
            best = float(cost[measured <= limit].min())
            total += 1
            if measured[pick] <= limit:
                kept += 1
                excess.append(cost[pick] / best - 1)
    return {
        "groups_x_limits": total,
        "keeps_limit_frac": kept / total,
        "median_excess_cost_frac": float(np.median(excess)),
    }


def coverage(predictions: Predictions, what: str = "tpot") -> float:
    sigma = np.array(predictions.sigma if what == "tpot" else predictions.sigma_ttft)
    return float(np.mean(np.abs(predictions.log_error(what)) <= 1.2815515655446004 * sigma))


# ---------------------------------------------------------------- held-out folds


def fit_rows(rows: list[Row]) -> LoopFit:
    return fit_closed_loop([deployment for _, deployment in deployments(rows)], BEFORE_FIT)


def inner_spread(rows: list[Row], key: Callable[[Row], str]) -> tuple[float, float]:
    """(TPOT, TTFT) residual scales of a leave-one-out among the training rows only."""
    tpot, ttft = [], []
    for value in sorted({key(row) for row in rows}):
        train = [row for row in rows if key(row) != value]
        if not train:
            continue
        fold = Predictions()
        fitted = fit_rows(train)
        for members, deployment in deployments(row for row in rows if key(row) == value):
            fold.extend(members, deployment, fitted.calibration(deployment.labels))
        tpot.append(fold.log_error("tpot"))
        ttft.append(fold.log_error("ttft"))
    return spread_of(np.concatenate(tpot)), spread_of(np.concatenate(ttft))


def leave_one_out(
    rows: list[Row], key: Callable[[Row], str], *, nested: bool
) -> tuple[Predictions, dict[str, LoopFit], dict[str, Any]]:
    pooled, fits, parts = Predictions(), {}, {}
    for value in sorted({key(row) for row in rows}):
        started = time.time()
        train = [row for row in rows if key(row) != value]
        fitted = fits[value] = fit_rows(train)
        sigma, sigma_ttft = (
            inner_spread(train, key) if nested else (BEFORE_FIT.uncertainty, BEFORE_FIT.ttft_uncertainty)
        )
        fold = Predictions()
        for members, deployment in deployments(row for row in rows if key(row) == value):
            calibration = fitted.calibration(deployment.labels).adjusted(uncertainty=sigma, ttft_uncertainty=sigma_ttft)
            fold.extend(members, deployment, calibration)
            pooled.extend(members, deployment, calibration)
        parts[value] = {
            "tpot": error_summary(fold.log_error()),
            "ttft": error_summary(fold.log_error("ttft")),
            "sigma": sigma,
        }
        print(
            f"  held out {value}: TPOT {parts[value]['tpot']['median_frac']:.1%} ({time.time() - started:.0f} s)",
            file=sys.stderr,
        )
    return pooled, fits, parts


def five_shot(rows: list[Row], fits: dict[str, LoopFit], key: Callable[[Row], str]) -> dict[str, Any]:
    """Five chosen points of each held-out deployment with at least ten; judged on the points it did not ask for.

    Picks after five points use as spread what five points left on the *other* held-out models.
    """
    after: dict[str, list[np.ndarray]] = defaultdict(list)
    before: list[np.ndarray] = []
    judged: list[tuple[str, list[Row], np.ndarray]] = []
    for value, fitted in fits.items():
        for members, deployment in deployments(row for row in rows if key(row) == value):
            if len(members) < 10:
                continue
            predict = log_tpot(deployment)
            start = fitted.calibration(deployment.labels)
            asked = choose_points(predict, start, STEP_CONSTANTS, count=5)
            adjusted = adjust(predict, start, STEP_CONSTANTS, asked, deployment.log_tpot[asked])
            rest = np.setdiff1d(np.arange(len(members)), asked)
            prediction = adjusted.log_predict(predict)
            after[value].append((prediction - deployment.log_tpot)[rest])
            before.append((predict(start) - deployment.log_tpot)[rest])
            judged.append((value, members, np.exp(prediction)))
    picks = Predictions()
    for value, members, tpot in judged:
        others = [error for name, errors in after.items() if name != value for error in errors]
        picks.rows += members
        picks.tpot += [float(t) for t in tpot]
        picks.sigma += [spread_of(np.concatenate(others))] * len(members)
    return {
        "deployments": len(judged), "after": error_summary(np.concatenate([e for errors in after.values() for e in errors])),
        "before": error_summary(np.concatenate(before)), "regret_at_goals": regret(picks, goals, margin=True),
        "regret_at_quartiles": regret(picks, quartiles, margin=True),
    }  # fmt: skip


def version_noise(rows: list[Row]) -> dict[str, float]:
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
    return {
        "configurations": len(ratios),
        "median_ratio": float(np.median(ratios)),
        "p90_ratio": float(np.percentile(ratios, 90)),
    }


def summarise(predictions: Predictions) -> dict[str, Any]:
    return {
        "tpot": error_summary(predictions.log_error()), "ttft": error_summary(predictions.log_error("ttft")),
        "coverage_80_tpot": coverage(predictions), "coverage_80_ttft": coverage(predictions, "ttft"),
        "rank_correlation": rank_correlation(predictions), "regret_at_goals": regret(predictions, goals, margin=True),
        "regret_at_goals_without_margin": regret(predictions, goals, margin=False),
        "regret_at_quartiles": regret(predictions, quartiles, margin=True),
        "regret_at_quartiles_without_margin": regret(predictions, quartiles, margin=False),
    }  # fmt: skip


def fixed(rows: list[Row], calibration: Calibration) -> dict[str, Any]:
    pooled = Predictions()
    for members, deployment in deployments(rows):
        pooled.extend(members, deployment, calibration)
    return summarise(pooled)


# ---------------------------------------------------------------- the shipped constants


def write_calibration(rows: list[Row]) -> None:
    """Fit on all gated rows and write the package's constants, with the held-out residual scale as their uncertainty."""
    pooled, _, _ = leave_one_out(rows, lambda row: row.model, nested=False)
    sigma, sigma_ttft = spread_of(pooled.log_error()), spread_of(pooled.log_error("ttft"))
    fitted = fit_rows(rows)
    engines = sorted({row.engine for row in rows})
    lines = [
        "# Fitted constants of the step law and of waiting. Written by `benchmarks/plan_vs_measured.py --write-calibration`.",
        "# What software reaches of peaks; never facts about a chip. Uncertainties are held-out residual scales.", "",
    ]  # fmt: skip
    for name, labels in [("serving", ()), *[(f"serving-{engine}", (f"engine:{engine}",)) for engine in engines]]:
        constants = fitted.calibration(labels).adjusted(uncertainty=sigma, ttft_uncertainty=sigma_ttft)
        source = f"measure_: fitted to {len(rows)} points of aggregated serving on H100, H200, B200"
        lines += [f'["{name}"]', f'provenance = "{source}{" by " + name.split("-")[1] if labels else ", all engines"}"']
        for field_name, value in sorted(vars(constants).items()):
            if isinstance(value, float):
                lines.append(f"{field_name} = {value:.4g}")
        lines.append("")
    target = Path(__file__).resolve().parents[1] / "src" / "ridgepoint" / "cost" / "calibrations.toml"
    target.write_text("\n".join(lines).rstrip() + "\n")
    print(f"wrote {target}", file=sys.stderr)


def table(result: dict[str, Any]) -> str:
    """One line a protocol: errors of TPOT and TTFT, coverage of the 80 % interval, and what the picks keep and cost."""
    head = [
        "protocol",
        "rows",
        "TPOT median",
        "p90",
        "TTFT median",
        "p90",
        "coverage",
        "rank",
        "picks keep limit",
        "cost over best",
    ]
    lines = [head]
    for name in ("roofline", "before_fit", "leave_one_model_out", "leave_one_system_out", "without_gate"):
        part = result.get(name)
        if part is None:
            continue
        tpot, ttft, regret = part["tpot"], part["ttft"], part["regret_at_goals"]
        shares = (
            tpot["median_frac"],
            tpot["p90_frac"],
            ttft["median_frac"],
            ttft["p90_frac"],
            part["coverage_80_tpot"],
        )
        lines.append(
            [
                name.replace("_", " "),
                str(tpot["rows"]),
                *(f"{share:.1%}" for share in shares),
                f"{part['rank_correlation']:.2f}",
                f"{regret['keeps_limit_frac']:.1%}",
                f"{regret['median_excess_cost_frac']:+.1%}",
            ]
        )
    after = result["five_shot"]["after"]
    lines.append(
        ["after five points", str(after["rows"]), f"{after['median_frac']:.1%}", f"{after['p90_frac']:.1%}", *[""] * 6]
    )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--write-calibration", action="store_true", help="refit and ship the constants")
    parser.add_argument("--fast", action="store_true", help="skip the nested intervals and the ungated run")
    arguments = parser.parse_args()
    if not available():
        print(f"no measured tables at {data_dir()}; set RIDGEPOINT_DATA", file=sys.stderr)
        return 2
    rows, left = serving_rows()
    kept, refused = gated(rows)
    kept, unplaceable = drop_unplaceable(kept)
    if arguments.write_calibration:
        write_calibration(kept)
        return 0
    by_model: Callable[[Row], str] = lambda row: row.model  # noqa: E731
    by_system: Callable[[Row], str] = lambda row: row.hardware.id  # noqa: E731
    result: dict[str, Any] = {
        **provenance.provenance(__doc__),
        "rows": {"total": len(rows) + sum(left.values()), "not_in_catalogue": dict(left), "refused": dict(refused), "does_not_fit": unplaceable, "used": len(kept)},
        "roofline": fixed(kept, ROOFLINE), "before_fit": fixed(kept, BEFORE_FIT), "version_noise": version_noise(kept),
    }  # fmt: skip
    pooled, fits, parts = leave_one_out(kept, by_model, nested=not arguments.fast)
    result["leave_one_model_out"] = {**summarise(pooled), "held_out": parts}
    result["five_shot"] = five_shot(kept, fits, by_model)
    pooled, _, parts = leave_one_out(kept, by_system, nested=not arguments.fast)
    result["leave_one_system_out"] = {**summarise(pooled), "held_out": parts}
    if not arguments.fast:
        plain, lost = drop_unplaceable(rows)
        pooled, _, _ = leave_one_out(plain, by_model, nested=False)
        result["without_gate"] = {"does_not_fit": lost, **summarise(pooled)}
    provenance.save(arguments.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
