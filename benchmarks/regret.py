"""Why does a pick cost more than the best measured one: whose error is it, what is the margin's share, and what could any predictor reach?

The log errors of held-out times are split by who shares them: a group (all candidates of one choice move together, so their ranking stays
right), an engine build (one engine, version and precision on one chip with one model: what no published fact tells), a build in one
layout. For each part alone, and for all but it, the picks are made again by a predictor that errs by nothing else, under the least constant
margin that keeps enough limits. That margin is known only in hindsight: a bound on what a predictor with these errors can reach, not
a method. `shared_error_alone` asks the same of drawn errors, so that it does not hang on the signs that these groups happened to have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import Vector
from picks import KEEP_FRAC, Group, Limits, margin_that_keeps, outcomes, pick, summary, with_margin

if TYPE_CHECKING:
    from measured_rows import Row

Owner = Callable[[int, "Row"], Hashable]  # of a group's number and a row: who shares the error


def _build(row: Row) -> tuple[Hashable, ...]:
    return (row.model, row.hardware.id, row.engine, row.version, row.precision_name)


OWNERS: dict[str, Owner] = {
    "the group": lambda group, row: group,
    "the engine build": lambda group, row: _build(row),
    "the build in one layout": lambda group, row: (*_build(row), row.layout),
}
DRAWS = 20


def log_errors(groups: Sequence[Group]) -> list[Vector]:
    return [np.log(group.predicted_s / group.measured_s) for group in groups]


def shared_by(groups: Sequence[Group], owner: Owner) -> list[Vector]:
    """Of each row's log error, the mean over all rows of the same owner."""
    errors = log_errors(groups)
    members: dict[Hashable, list[float]] = defaultdict(list)
    for index, (group, error) in enumerate(zip(groups, errors, strict=True)):
        for row, value in zip(group.rows, error, strict=True):
            members[owner(index, row)].append(float(value))
    mean = {name: float(np.mean(values)) for name, values in members.items()}
    return [np.array([mean[owner(index, row)] for row in group.rows]) for index, group in enumerate(groups)]


def erring_by(groups: Sequence[Group], errors: Sequence[Vector]) -> list[Group]:
    return [
        replace(group, predicted_s=group.measured_s * np.exp(error))
        for group, error in zip(groups, errors, strict=True)
    ]


def least_margin(groups: Sequence[Group], limits: Limits) -> dict[str, Any]:
    """Picks under the least constant margin that keeps `KEEP_FRAC` of the limits."""
    margin = margin_that_keeps(groups, limits, KEEP_FRAC)
    return {"margin": margin, **summary(outcomes(with_margin(groups, margin), limits))}


def by_whose_error(groups: Sequence[Group], limits: Limits) -> dict[str, Any]:
    """Picks of predictors that err by one part of the errors found, with the spread (root mean square) of that part."""
    everything = log_errors(groups)
    parts = {"all errors": everything}
    for name, owner in OWNERS.items():
        shared = shared_by(groups, owner)
        parts[f"only what {name} shares"] = shared
        parts[f"all but what {name} shares"] = [e - s for e, s in zip(everything, shared, strict=True)]
    return {
        name: {
            "spread": float(np.sqrt(np.mean(np.concatenate(errors) ** 2))),
            **least_margin(erring_by(groups, errors), limits),
        }
        for name, errors in parts.items()
    }


def shared_error_alone(groups: Sequence[Group], limits: Limits) -> dict[str, float]:
    """A predictor whose ranking is perfect and whose groups are off by normal errors of the spread found: means over seeded draws."""
    spread = float(np.sqrt(np.mean(np.concatenate(shared_by(groups, OWNERS["the group"])) ** 2)))
    found = []
    for seed in range(DRAWS):
        draw = np.random.default_rng(seed)
        off = [np.full_like(group.measured_s, draw.normal(0, spread)) for group in groups]
        found.append(least_margin(erring_by(groups, off), limits))
    names = ("margin", "keeps_limit_frac", "median_excess_cost_frac", "mean_excess_cost_frac", "within_10_percent_frac")
    return {"spread": spread, **{name: float(np.mean([report[name] for report in found])) for name in names}}


def grid_step(groups: Sequence[Group], limits: Limits) -> dict[str, float]:
    """What the next candidate costs over the best one under a limit: what a margin loses where it loses least. `nearest_log` is how far
    under its limit the best one lies (natural log): a margin above it gives the best one away, however well times are known."""
    steps, nearest = [], []
    for group in groups:
        cost = group.cost(group.measured_s)
        for limit in limits(group.measured_s):
            kept = group.measured_s <= limit
            best = int(np.where(kept, cost, np.inf).argmin())
            nearest.append(float(np.log(limit / group.measured_s[best])))
            dearer = cost[kept & (cost > cost[best] * (1 + 1e-9))]
            if len(dearer):
                steps.append(float(dearer.min() / cost[best] - 1))
    return {
        "median_step_frac": float(np.median(steps)), "median_nearest_log": float(np.median(nearest)),
        "best_within_margin_frac": float(np.mean(np.array(nearest) < _usual_margin(groups))),
    }  # fmt: skip


def _usual_margin(groups: Sequence[Group]) -> float:
    return float(np.median(np.concatenate([group.margin for group in groups])))


def why_missed(groups: Sequence[Group], limits: Limits) -> dict[str, float]:
    """Shares of the limits by what became of the best configuration: taken (or one of equal cost), or passed over because it was predicted to
    break the limit, because it came nearer to it than the margin, or because another was predicted cheaper."""
    count: dict[str, int] = defaultdict(int)
    for group in groups:
        cost = group.cost(group.measured_s)
        for limit in limits(group.measured_s):
            best = int(np.where(group.measured_s <= limit, cost, np.inf).argmin())
            chosen = pick(group, limit)
            if group.measured_s[chosen] <= limit and cost[chosen] <= cost[best] * (1 + 1e-9):
                count["taken"] += 1
            elif group.predicted_s[best] > limit:
                count["predicted over the limit"] += 1
            elif group.predicted_s[best] * np.exp(group.margin[best]) > limit:
                count["within the margin"] += 1
            else:
                count["predicted dearer"] += 1
    total = sum(count.values())
    return {reason: number / total for reason, number in sorted(count.items(), key=lambda item: -item[1])}


def taken_apart(groups: Sequence[Group], limits: Limits) -> dict[str, float]:
    """Mean log excess of the picks that keep their limit, a step at a time: the grid and the margin (exact times), what the group's
    shared error adds, what errors of the ranking add. `broken_frac` beside each: limits broken on the way."""
    exact = erring_by(groups, [np.zeros_like(group.measured_s) for group in groups])
    shared = erring_by(groups, shared_by(groups, OWNERS["the group"]))
    so_far, report = 0.0, {}
    for name, step in (("margin", exact), ("shared error", shared), ("ranking", groups)):
        found = outcomes(step, limits, pick)
        mean = float(np.mean([np.log1p(outcome.excess_frac) for outcome in found if outcome.kept]))
        report[name], so_far = mean - so_far, mean
        report[f"{name} broken_frac"] = sum(not outcome.kept for outcome in found) / len(found)
    return {**report, "all": so_far}
