"""Predictions of measured serving rows by constants that never saw them: leave one model, or one system, out.

Each fold fits the shared constants on the other models (or systems) and predicts the one left out. The width of its
interval, and with it the margin of a pick, is what the package itself would state of those rows: the spread of what a fit misses on models
it has not seen (`stated_spreads`, which `fit_calibration.py` ships). That procedure is what is judged, on models and on systems alike; where a
system is left out it knows nothing of how systems differ, and the interval's coverage there says what that costs. Fits are kept by what they left
out: the inner folds of two outer folds share half of them.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from figures import Vector, error_summary, spread_of
from measured_rows import Row
from recipes import ACCEPTANCE
from ridgepoint.cost.calibration import BEFORE_FIT, Calibration
from ridgepoint.cost.closed_loop_fit import STEP_CONSTANTS, Deployment, LoopFit, fit_closed_loop, log_tpot
from ridgepoint.cost.drafting import own_module
from ridgepoint.cost.fewshot import adjust, choose_points
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.serving import ClosedLoop, price_serving, serving_amounts
from ridgepoint.cost.speculation import Acceptance
from ridgepoint.errors import PlanError

TURNOVER = 0.1  # these benchmarks send about ten requests per client and count the first wave
Z_EIGHTY = 0.8416212335729143  # a time this many deviations above the estimate is kept with 80 % probability

Key = Callable[[Row], str]


def by_model(row: Row) -> str:
    return row.model


def by_system(row: Row) -> str:
    return row.hardware.id


def _tokens_per_step(row: Row) -> float:
    return Acceptance.constant(ACCEPTANCE, row.recipe.draft_tokens or 0).tokens_per_step


def deployments(rows: Iterable[Row]) -> list[tuple[list[Row], Deployment]]:
    """Rows of one model on one chip type by one engine in one precision, as arrays, with their unpriced steps."""
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[(*row.deployment, row.precision, bool(np.any(row.layout.pp > 1)))].append(row)
    return [(members, _deployment(members)) for members in grouped.values()]


def _deployment(members: Sequence[Row]) -> Deployment:
    def column(read: Callable[[Row], Any]) -> Vector:
        return np.array([float(read(row)) for row in members])

    first = members[0]
    layout = Layout(
        tp=column(lambda r: r.layout.tp), dp_attention=column(lambda r: r.layout.dp_attention), ep=column(lambda r: r.layout.ep),
        pp=column(lambda r: r.layout.pp),
    )  # fmt: skip
    load = ClosedLoop(
        input_tokens=column(lambda r: r.input_tokens * r.recipe.mean_length_frac),
        output_tokens=column(lambda r: r.output_tokens * r.recipe.mean_length_frac),
        concurrency=column(lambda r: r.concurrency), turnover_frac=TURNOVER, equal_lengths_frac=column(lambda r: r.recipe.equal_lengths),
        draft_tokens=column(lambda r: r.recipe.draft_tokens or 0), tokens_per_step=column(_tokens_per_step),
    )  # fmt: skip
    drafts = any(row.recipe.draft_tokens for row in members)
    amounts = serving_amounts(
        first.spec, first.hardware, layout, first.precision, load, chunk_tokens=column(lambda r: r.recipe.chunk_tokens),
        routing_skew=BEFORE_FIT.routing_skew, drafter=own_module(first.model, first.spec) if drafts else None,
    )  # fmt: skip
    return Deployment(
        first.hardware, amounts, (f"engine:{first.engine}",),
        np.log(column(lambda r: r.measure_tpot_s)), np.log(column(lambda r: r.measure_ttft_s)),
    )  # fmt: skip


def drop_unplaceable(rows: list[Row]) -> tuple[list[Row], int]:
    """Rows whose model does not fit on the stated chips at all cannot be priced; they are counted, not forced."""
    kept = []
    for row in rows:
        load = ClosedLoop(input_tokens=row.input_tokens, output_tokens=row.output_tokens, concurrency=row.concurrency)
        try:
            serving_amounts(row.spec, row.hardware, row.layout, row.precision, load)
        except PlanError:
            continue
        kept.append(row)
    return kept, len(rows) - len(kept)


@dataclass(frozen=True)
class Predictions:
    """Rows with predicted times, their log-scale spreads, and the log-scale margin a pick among them takes under a limit."""

    rows: tuple[Row, ...]
    tpot_s: Vector
    ttft_s: Vector
    sigma: Vector
    sigma_ttft: Vector
    margin: Vector

    def measured(self, what: str) -> Vector:
        tpot, ttft = (np.array([getattr(row, f"measure_{name}_s") for row in self.rows]) for name in ("tpot", "ttft"))
        return {"tpot": tpot, "ttft": ttft, "tokens_per_s": self._tokens_per_s(tpot, ttft)}[what]

    def predicted(self, what: str) -> Vector:
        times = {"tpot": self.tpot_s, "ttft": self.ttft_s}
        return times[what] if what in times else self._tokens_per_s(self.tpot_s, self.ttft_s)

    def _tokens_per_s(self, tpot: Vector, ttft: Vector) -> Vector:
        """Output tokens per second of the instance, all clients always having a request."""
        out = np.array([row.output_tokens for row in self.rows])
        return np.array([row.concurrency for row in self.rows]) * out / (ttft + out * tpot)

    def log_error(self, what: str = "tpot") -> Vector:
        return np.log(self.predicted(what) / self.measured(what))

    def with_spreads(self, sigma: float, sigma_ttft: float) -> Predictions:
        spread = np.full(len(self.rows), sigma)
        return replace(self, sigma=spread, sigma_ttft=np.full_like(spread, sigma_ttft), margin=Z_EIGHTY * spread)


def predict(rows: Iterable[Row], calibration_of: Callable[[Deployment], Calibration]) -> Predictions:
    """Spreads and margin are the calibration's own (80 % probability)."""
    kept: list[Row] = []
    columns: list[list[Vector]] = [[], [], [], [], []]
    for members, deployment in deployments(rows):
        calibration = calibration_of(deployment)
        cost = price_serving(deployment.amounts, deployment.hardware, calibration)
        kept += members
        values = (
            cost.estimate_tpot_s, cost.estimate_ttft_s, calibration.uncertainty, calibration.ttft_uncertainty,
            Z_EIGHTY * calibration.uncertainty,
        )  # fmt: skip
        for column, value in zip(columns, values, strict=True):
            column.append(np.broadcast_to(np.asarray(value, dtype=float), len(members)))
    return Predictions(tuple(kept), *(np.concatenate(column) for column in columns))


def concat(parts: Sequence[Predictions]) -> Predictions:
    names = ("tpot_s", "ttft_s", "sigma", "sigma_ttft", "margin")
    return Predictions(
        tuple(row for part in parts for row in part.rows),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in names),
    )


class Folds:
    """Fits to all rows but those of some values of `key`."""

    def __init__(self, rows: Sequence[Row], key: Key) -> None:
        self.rows, self.key = list(rows), key
        self.values = sorted({key(row) for row in rows})
        self._priced = [(key(members[0]), deployment) for members, deployment in deployments(rows)]
        self._fits: dict[frozenset[str], LoopFit] = {}

    def fit_without(self, *values: str) -> LoopFit:
        left_out = frozenset(values)
        if left_out not in self._fits:
            self._fits[left_out] = fit_closed_loop(
                [d for value, d in self._priced if value not in left_out], BEFORE_FIT
            )
        return self._fits[left_out]

    def held_out(self, value: str, *also_without: str) -> Predictions:
        """`value`'s rows by a fit that saw neither them nor those of `also_without`."""
        fitted = self.fit_without(value, *also_without)
        return predict(
            [row for row in self.rows if self.key(row) == value],
            lambda deployment: fitted.calibration(deployment.labels),
        )

    def inner(self, value: str) -> Predictions:
        """Leave-one-model-out among the rows left when `value` is away: what may be learnt about errors without looking at it."""
        if self.key is by_model:
            return concat([self.held_out(other, value) for other in self.values if other != value])
        return unseen_models([row for row in self.rows if self.key(row) != value])


def unseen_models(rows: Sequence[Row]) -> Predictions:
    """Every row by a fit to the other models among `rows`."""
    folds = Folds(rows, by_model)
    return concat([folds.held_out(value) for value in folds.values])


def stated_spreads(predictions: Predictions) -> tuple[float, float]:
    """(TPOT, TTFT): the uncertainty that goes with constants whose misses on unseen models these are."""
    return spread_of(predictions.log_error("tpot")), spread_of(predictions.log_error("ttft"))


def leave_one_out(folds: Folds, *, nested: bool = True) -> tuple[Predictions, dict[str, Any]]:
    """Every row predicted by a fit without its model (or system), and the errors of each part. Not `nested`: the spreads
    written down before any fit."""
    parts: dict[str, Predictions] = {}
    report: dict[str, Any] = {}
    for value in folds.values:
        started = time.time()
        fold = folds.held_out(value)
        if nested:
            fold = fold.with_spreads(*stated_spreads(folds.inner(value)))
        parts[value] = fold
        report[value] = {
            "tpot": error_summary(fold.log_error()), "ttft": error_summary(fold.log_error("ttft")),
            "sigma": float(fold.sigma[0]),
        }  # fmt: skip
        took = time.time() - started
        print(f"  held out {value}: TPOT {report[value]['tpot']['median_frac']:.1%} ({took:.0f} s)", file=sys.stderr)
    return concat(list(parts.values())), report


FEWEST_POINTS = 10  # a deployment with fewer leaves too little to judge five-shot on


def five_shot(folds: Folds) -> tuple[dict[str, Any], Predictions]:
    """Five chosen points of each held-out deployment, judged on the points not asked for; and what a pick then knows: the five as
    measured, the rest with the spread that five points left on the *other* held-out models."""
    after: dict[str, list[Vector]] = defaultdict(list)
    before: list[Vector] = []
    judged: list[tuple[str, list[Row], Deployment, Vector, Vector]] = []
    for members, deployment in deployments(folds.rows):
        if len(members) < FEWEST_POINTS:
            continue
        value = folds.key(members[0])
        start = folds.fit_without(value).calibration(deployment.labels)
        predicted = log_tpot(deployment)
        asked = choose_points(predicted, start, STEP_CONSTANTS, count=5)
        adjusted = adjust(predicted, start, STEP_CONSTANTS, asked, deployment.log_tpot[asked])
        rest = np.setdiff1d(np.arange(len(members)), asked)
        prediction = adjusted.log_predict(predicted)
        after[value].append((prediction - deployment.log_tpot)[rest])
        before.append((predicted(start) - deployment.log_tpot)[rest])
        judged.append((value, members, deployment, asked, prediction))
    picks = []
    for value, members, deployment, asked, prediction in judged:
        sigma = spread_of(np.concatenate([e for name, errors in after.items() if name != value for e in errors]))
        known, spread = prediction.copy(), np.full(len(members), sigma)
        known[asked], spread[asked] = deployment.log_tpot[asked], 0.0
        unused = np.full(len(members), np.nan)
        picks.append(Predictions(tuple(members), np.exp(known), unused, spread, unused, Z_EIGHTY * spread))
    report = {
        "deployments": len(judged), "after": error_summary(np.concatenate([e for errors in after.values() for e in errors])),
        "before": error_summary(np.concatenate(before)),
    }  # fmt: skip
    return report, concat(picks)
