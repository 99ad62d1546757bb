"""What a planner's pick costs: in each group of measured configurations, the cheapest one predicted to keep a latency limit.

A group is one model on one chip type under one load; its configurations differ in engine, version, layout, precision and clients.
The pick sees predicted times alone; it must lie under the limit by a margin, and the cheapest of those that do is taken (the
fastest, where none does). Cost is chip-seconds per token at the *measured* time, over that of the best configuration that really
keeps the limit. Nothing here is fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from figures import Vector

if TYPE_CHECKING:
    from held_out import Predictions
    from measured_rows import Row

FEWEST = 4  # configurations in a group for which choosing means anything
KEEP_FRAC = 0.9  # of picks that must keep their limit
GOALS_S = (0.010, 0.020, 0.030, 0.050, 0.100)  # what users ask for: 100, 50, 33, 20 and 10 tokens a second

Limits = Callable[[Vector], list[float]]


@dataclass(frozen=True)
class Group:
    """Measured configurations a planner could have chosen between."""

    measured_s: Vector
    predicted_s: Vector
    chips_per_client: Vector
    margin: Vector  # log scale
    rows: tuple[Row, ...] = ()  # where they came from, if anybody asks what a pick differs by

    def cost(self, time_s: Vector) -> Vector:
        """Chip-seconds per output token."""
        return self.chips_per_client * time_s


class Outcome(NamedTuple):
    group: int
    kept: bool
    excess_frac: float  # cost over the best; nan where the limit is broken


def groups_of(predictions: Predictions) -> list[Group]:
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(predictions.rows):
        members[(row.model, row.hardware.id, row.input_tokens, row.output_tokens)].append(index)
    measured = predictions.measured("tpot")
    unit = np.array([float(row.layout.chips) / row.concurrency for row in predictions.rows])
    return [
        Group(
            measured[rows], predictions.tpot_s[rows], unit[rows], predictions.margin[rows], tuple(predictions.rows[i] for i in rows)
        )
        for rows in members.values() if len(rows) >= FEWEST
    ]  # fmt: skip


def goals(measured: Vector) -> list[float]:
    """The round goals at least one and not every configuration of the group meets."""
    return _telling(GOALS_S, measured)


def all_limits(measured: Vector) -> list[float]:
    """Twenty limits a decade between the group's fastest and slowest: the same question asked densely enough to be smooth."""
    return _telling(10 ** np.arange(-3.0, 0.0, 0.05), measured)


def quartiles(measured: Vector) -> list[float]:
    """The hardest limits: each lies at or beside a measured time, so the best pick has no slack at all."""
    return [float(np.percentile(measured, quantile)) for quantile in (25, 50, 75)]


def _telling(limits: Sequence[float] | Vector, measured: Vector) -> list[float]:
    return [float(limit) for limit in limits if (measured <= limit).any() and (measured > limit).any()]


def pick(group: Group, limit_s: float) -> int:
    feasible = group.predicted_s * np.exp(group.margin) <= limit_s
    if not feasible.any():
        return int(group.predicted_s.argmin())
    return int(np.where(feasible, group.cost(group.predicted_s), np.inf).argmin())


def outcomes(groups: Sequence[Group], limits: Limits, choose: Callable[[Group, float], int] = pick) -> list[Outcome]:
    found = []
    for index, group in enumerate(groups):
        cost = group.cost(group.measured_s)
        for limit in limits(group.measured_s):
            chosen = choose(group, limit)
            kept = bool(group.measured_s[chosen] <= limit)
            best = float(cost[group.measured_s <= limit].min())
            found.append(Outcome(index, kept, float(cost[chosen] / best - 1) if kept else float("nan")))
    return found


def keeps_frac(found: Sequence[Outcome]) -> float:
    return sum(outcome.kept for outcome in found) / len(found)


def excess(found: Sequence[Outcome]) -> Vector:
    return np.array([outcome.excess_frac for outcome in found if outcome.kept])


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Picks that keep the limit and their cost over the best, with 80 % intervals over resampled groups (seeded). The cost is
    None where no pick keeps its limit."""
    by_group: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in found:
        by_group[outcome.group].append(outcome)
    names, draw = list(by_group), np.random.default_rng(0)
    again = [[o for name in draw.choice(names, len(names)) for o in by_group[name]] for _ in range(200)]
    over = excess(found)
    report: dict[str, Any] = {
        "groups": len(names), "limits": len(found),
        "keeps_limit_frac": keeps_frac(found), "keeps_limit_interval": _interval([keeps_frac(s) for s in again]),
    }  # fmt: skip
    if not len(over):
        return {**report, "median_excess_cost_frac": None}
    costs = [excess(sample) for sample in again]
    return {
        **report, "median_excess_cost_frac": float(np.median(over)),
        "median_excess_cost_interval": _interval([float(np.median(cost)) for cost in costs if len(cost)]),
        "mean_excess_cost_frac": float(np.expm1(np.log1p(over).mean())), "within_10_percent_frac": float((over <= 0.1).mean()),
    }  # fmt: skip


def _interval(values: Sequence[float]) -> list[float]:
    return [float(np.percentile(values, q)) for q in (10, 90)]


def with_margin(groups: Sequence[Group], margin: float) -> list[Group]:
    return [replace(group, margin=np.full_like(group.measured_s, margin)) for group in groups]


MARGINS = np.arange(0.0, 1.0, 0.01)  # log scale: up to a factor of e


def margin_that_keeps(groups: Sequence[Group], limits: Limits, keep_frac: float) -> float:
    """The least log-scale margin with which these picks keep `keep_frac` of their limits; where none does (a limit may be below
    everything that is predicted), the least of those that keep most."""
    most, found = -1.0, 0.0
    for margin in MARGINS:
        kept = keeps_frac(outcomes(with_margin(groups, float(margin)), limits))
        if kept > most:
            most, found = kept, float(margin)
        if kept >= keep_frac:
            break
    return found


def what_costs(groups: Sequence[Group], limits: Limits) -> dict[str, Any]:
    """The excess taken apart: without the margin; the margin with exact times; ranking alone, among those that truly keep the limit."""

    def among_true(group: Group, limit_s: float) -> int:
        kept = group.measured_s <= limit_s
        return int(np.where(kept, group.cost(group.predicted_s), np.inf).argmin())

    exact = [replace(group, predicted_s=group.measured_s) for group in groups]
    return {
        "predicted times, no margin": summary(outcomes(with_margin(groups, 0.0), limits)),
        "exact times, same margin": summary(outcomes(exact, limits)),
        "predicted ranking, exact limits": summary(outcomes(groups, limits, among_true)),
    }


def differs_by(chosen: Row, best: Row) -> str:
    """The first thing a pick did otherwise than the best configuration."""
    if (chosen.engine, chosen.precision_name) != (best.engine, best.precision_name):
        return "engine or precision"
    if chosen.layout != best.layout:
        return "layout"
    if chosen.concurrency != best.concurrency:
        return "fewer clients" if chosen.concurrency < best.concurrency else "more clients"
    return "engine version"


def picks_differ_by(groups: Sequence[Group], limits: Limits) -> dict[str, dict[str, float]]:
    """How picks relate to the best configuration: share of limits, and what each kind adds to the mean log excess of kept picks."""
    count: dict[str, int] = defaultdict(int)
    log_excess: dict[str, float] = defaultdict(float)
    for group in groups:
        cost = group.cost(group.measured_s)
        for limit in limits(group.measured_s):
            kept = group.measured_s <= limit
            chosen, best = pick(group, limit), int(np.where(kept, cost, np.inf).argmin())
            if not kept[chosen]:
                kind = "limit broken"
            elif cost[chosen] <= cost[best] * (1 + 1e-9):
                kind = "nothing"
            else:
                kind = differs_by(group.rows[chosen], group.rows[best])
                log_excess[kind] += float(np.log(cost[chosen] / cost[best]))
            count[kind] += 1
    total, broken = sum(count.values()), count["limit broken"]
    return {
        kind: {"limits_frac": number / total, "log_excess": log_excess[kind] / max(total - broken, 1)}
        for kind, number in sorted(count.items(), key=lambda item: -item[1]) if number
    }  # fmt: skip


def excess_by_spread(
    groups: Sequence[Group], limits: Limits, spreads: Sequence[float] = (0.02, 0.05, 0.10, 0.15, 0.20)
) -> dict[str, Any]:
    """What keeping `KEEP_FRAC` of the limits costs a predictor whose log errors are normal with a given spread: the price of not
    knowing times exactly, on these groups and limits, whatever the model (mean of five draws)."""
    found = {}
    for spread in spreads:
        medians, means = [], []
        for seed in range(5):
            draw = np.random.default_rng(seed)
            noisy = [
                replace(g, predicted_s=g.measured_s * np.exp(draw.normal(0, spread, len(g.measured_s)))) for g in groups
            ]
            over = excess(outcomes(with_margin(noisy, margin_that_keeps(noisy, limits, KEEP_FRAC)), limits))
            medians.append(float(np.median(over)))
            means.append(float(np.log1p(over).mean()))
        found[f"{spread:.2f}"] = {
            "median_excess_cost_frac": float(np.mean(medians)), "mean_excess_cost_frac": float(np.expm1(np.mean(means))),
        }  # fmt: skip
    return found
