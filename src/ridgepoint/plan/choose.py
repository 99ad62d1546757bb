"""From priced rows to an answer: what is feasible, the frontier, the choice, its runner-up, what would change it, and, when
nothing is feasible, the closest there is and the constraint that fails. Only compares columns; prices nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ridgepoint.errors import PlanError
from ridgepoint.plan.points import Points, pareto
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.workload import Goal

Mask = NDArray[np.bool_]

OBJECTIVE = {"usd": "usd_per_mtok", "watts": "watts", "chips": "chips", "tpot": "tpot_s", "ttft": "ttft_s"}
UNITS = {
    "worst_wait_s": "s",
    "ttft_s": "s",
    "tpot_s": "s",
    "usd_per_mtok": "USD",
    "watts": "W",
    "chips": "chips",
    "supply": "x",
}
_TIMED = ("ttft_s", "tpot_s", "worst_wait_s", "usd_per_mtok")  # what the uncertainty of seconds widens
FRONTIER_ROWS = 40
TIE_FRAC = 0.02  # a difference an estimate cannot tell: its 80 % interval is ten times as wide


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A limit no row keeps by itself, or (`alone` False) not together with the others. `best` is the least value there is."""

    metric: str
    limit: float
    best: float
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed question and the deployment that would then be chosen."""

    what: str
    row: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`alternatives` is the best feasible row of each use of the hardware (together, which pool prefills for which, in which memory), best
    first. `saving_frac` is what the row of the very least objective would save, where another was chosen for being simpler.
    `feasible` False: `chosen` is the closest row to the goal and `failures` says what it breaks."""

    feasible: bool
    chosen: dict[str, float]
    runner_up: dict[str, float] | None
    alternatives: tuple[dict[str, float], ...]
    frontier: Points
    failures: tuple[Failure, ...]
    num_priced: int
    num_feasible: int
    saving_frac: float


def upper(points: Points, metric: str, confidence: float) -> NDArray[np.float64]:
    """The value a metric stays below with probability `confidence`."""
    values = points[metric]
    if metric not in _TIMED:
        return values
    wide = np.exp(NormalDist().inv_cdf(confidence) * points["sigma_ttft" if metric == "ttft_s" else "sigma"])
    if metric in ("tpot_s", "worst_wait_s"):
        # A timetable is kept for as long as the work of a step fits into its interval; beyond, departures stretch with it.
        late = np.maximum(1.0, points["busy_tpot_s"] / points["tpot_s"] * wide)
        return values * np.where(points["timetable"] > 0, late, wide)
    return values * wide


def keeps(points: Points, goal: Goal) -> dict[str, Mask]:
    """Per limit, the rows that keep it. An unknown value (power of a chip without TDP) keeps no limit on it."""
    with np.errstate(invalid="ignore"):
        return {
            metric: upper(points, metric, goal.confidence) <= limit * (1 + 1e-9)
            for metric, limit in limits(points, goal).items()
        }


def limits(points: Points, goal: Goal) -> dict[str, float]:
    """The goal's limits and, where chips are counted, that no pool gives more than it has."""
    return {**goal.limits(), **({"supply": 1.0} if points["supply"].any() else {})}


FAMILY = (
    "kind",
    "d_pool",
    "d_tp",
    "d_dp",
    "d_ep",
    "d_pp",
    "d_memory",
    "p_pool",
)  # rows alike in these are one answer in two sizes


def choose(points: Points, goal: Goal) -> Choice:
    objective = _objective(points, goal)
    kept = keeps(points, goal)
    rows = feasible_rows(points, kept)
    if not len(rows):
        return _closest(points, goal, kept)
    best = _least(points, objective, rows)
    # A runner-up differs in hardware, in how it is used or in the decode layout: not in batch, chunk, counts or prefill layout.
    others = rows[np.logical_or.reduce([points[name][rows] != points[name][best] for name in FAMILY])]
    runner_up = points.row(_least(points, objective, others)) if len(others) else None
    return Choice(
        feasible=True, chosen=points.row(best), runner_up=runner_up, alternatives=_alternatives(points, objective, rows),
        frontier=_frontier(points.pick(rows), goal), failures=(),
        num_priced=len(points), num_feasible=len(rows), saving_frac=float(1.0 - objective[rows].min() / objective[best]),
    )  # fmt: skip


def feasible_rows(points: Points, kept: dict[str, Mask]) -> NDArray[np.intp]:
    return np.flatnonzero(np.logical_and.reduce([np.ones(len(points), dtype=bool), *kept.values()]))


def _least(points: Points, objective: NDArray[np.float64], rows: NDArray[np.intp]) -> int:
    """The least objective, or what is as good and simpler: of `rows` within `TIE_FRAC` of the least, those with the fewest chips, of these
    the least complex, then the least objective, power and time per token."""
    values = objective[rows]
    tied = rows[values <= values.min() * (1 + TIE_FRAC)]
    watts = points["watts"][tied]
    order = (
        points["tpot_s"][tied],
        np.where(np.isnan(watts), np.inf, watts),
        objective[tied],
        _complexity(points, tied),
        points["chips"][tied],
    )
    return int(tied[np.lexsort(order)[0]])


def _complexity(points: Points, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """How much there is to run and to go wrong: pools beside one another, pipelines, a drafter, a timetable."""
    parts = (points["kind"], points["d_pp"] > 1, points["p_pp"] > 1, points["draft"] > 0, points["timetable"])
    return np.sum([part[rows] > 0 for part in parts], axis=0).astype(float)


def _objective(points: Points, goal: Goal) -> NDArray[np.float64]:
    values = points[OBJECTIVE[goal.minimise]]
    if np.isnan(values).any():
        if np.isnan(values).all():
            raise PlanError(
                f"cannot minimise {goal.minimise}: it is unknown for all this hardware",
                hint="state tdp_w in a hardware TOML file",
            )
        values = np.where(np.isnan(values), np.inf, values)
    return values


def _alternatives(
    points: Points, objective: NDArray[np.float64], rows: NDArray[np.intp]
) -> tuple[dict[str, float], ...]:
    keys = ((points["kind"] * 4 + points["d_memory"]) * 1e6 + points["d_pool"] * 1e3 + points["p_pool"])[rows]
    best = [_least(points, objective, rows[keys == key]) for key in np.unique(keys)]
    return tuple(points.row(index) for index in sorted(best, key=lambda index: float(objective[index])))


DEAR = 20.0  # beyond this many times the least cost a row is no longer an offer


def _frontier(points: Points, goal: Goal) -> Points:
    """Rows that trade the objective against time per token; those that cost twenty times the least are left out."""
    points = points.pick(points["usd_per_mtok"] <= DEAR * points["usd_per_mtok"].min())
    against = [points[OBJECTIVE[goal.minimise]], points["tpot_s"]]
    if goal.minimise in ("tpot", "ttft"):
        against.append(points["usd_per_mtok"])
    return points.pick(_thinned(pareto(against)))


def cost_latency_frontier(points: Points) -> Points:
    """Dollars against time per token over all rows, whatever the goal: for charts."""
    return points.pick(_thinned(pareto([points["usd_per_mtok"], points["tpot_s"]]), 80))


def _thinned(rows: NDArray[np.intp], most: int = FRONTIER_ROWS) -> NDArray[np.intp]:
    return rows if len(rows) <= most else rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(np.intp))]


STOCK_WEIGHT = 4.0  # a limit may be talked about; chips that are not there cannot be rented from oneself


def _closest(points: Points, goal: Goal, kept: dict[str, Mask]) -> Choice:
    """The row whose relative excesses over the limits, multiplied together, are least; and the limits it breaks."""
    excess = np.zeros(len(points))
    for metric, limit in limits(points, goal).items():
        values = upper(points, metric, goal.confidence)
        excess += (STOCK_WEIGHT if metric == "supply" else 1.0) * np.where(
            np.isnan(values), np.inf, np.maximum(0.0, np.log(np.maximum(values, 1e-30) / limit))
        )
    best = int(np.lexsort((_objective(points, goal), excess))[0])
    failures = []
    for metric, limit in limits(points, goal).items():
        values = upper(points, metric, goal.confidence)
        if kept[metric][best]:
            continue
        least = float(np.nanmin(values)) if not np.isnan(values).all() else math.nan
        failures.append(Failure(metric=metric, limit=limit, best=least, alone=not kept[metric].any()))
    return Choice(
        feasible=False, chosen=points.row(best), runner_up=None, alternatives=(), frontier=cost_latency_frontier(points), failures=tuple(failures),
        num_priced=len(points), num_feasible=0, saving_frac=0.0,
    )  # fmt: skip


def what_would_change(
    points: Points, goal: Goal, chosen: dict[str, float], pools: Sequence[Pool]
) -> tuple[Change, ...]:
    """Changed limits, rents and confidence under which another family of deployment wins; only those that change it."""
    trials: list[tuple[str, Points, Goal]] = []
    for name in ("ttft_s", "tpot_s", "wait_s"):
        limit = getattr(goal, name)
        if limit is not None:
            trials += [
                (f"{name.removesuffix('_s').upper()} limit x {k:g}", points, replace(goal, **{name: limit * k}))
                for k in (0.5, 2.0, 4.0)
            ]
    if goal.confidence > 0.5:
        trials.append(("trusting the middle estimate (confidence 0.5)", points, replace(goal, confidence=0.5)))
    for objective in ("usd", "watts", "chips"):
        if objective != goal.minimise and not np.isnan(points[OBJECTIVE[objective]]).any():
            trials.append((f"minimising {objective}", points, replace(goal, minimise=objective)))
    if goal.minimise == "usd" and len({pool.chip.id for pool in pools}) > 1:
        for index, pool in enumerate(pools):
            low, middle, high = pool.usd_per_hour
            for name, rent in (("low", low), ("high", high)):
                if abs(rent / middle - 1) > 0.02:
                    trials.append(
                        (
                            f"{pool.chip.id} at its {name} rent of {rent:.3g} USD/h",
                            _reprice(points, index, rent / middle, pools),
                            goal,
                        )
                    )
    if goal.minimise == "usd" and (points["paid_chips"] > points["chips"] + 0.5).any():
        trials.append(("sharing nodes and racks with others", _shared(points, pools), goal))
    changes = []
    for what, table, asked in trials:
        rows = feasible_rows(table, keeps(table, asked))
        if not len(rows):
            continue
        row = table.row(_least(table, _objective(table, asked), rows))
        if any(row[name] != chosen[name] for name in FAMILY):
            changes.append(Change(what=what, row=row))
    return tuple(changes)


def _shared(points: Points, pools: Sequence[Pool]) -> Points:
    """The table with only the chips that work paid for."""
    rents = np.array([p.usd_per_hour[1] for p in pools])
    d_rent, p_rent = (rents[points[name].astype(int)] for name in ("d_pool", "p_pool"))
    usd = points["d_chips"] * d_rent + points["p_chips"] * p_rent
    scale = usd / points["usd_per_hour"]
    return points.replaced(
        usd_per_hour=usd, usd_per_mtok=points["usd_per_mtok"] * scale, paid_chips=points["chips"], d_paid=points["d_chips"], p_paid=points["p_chips"]
    )  # fmt: skip


def _reprice(points: Points, pool: int, factor: float, pools: Sequence[Pool]) -> Points:
    """The table with one pool's rent multiplied."""
    rents = np.array([p.usd_per_hour[1] for p in pools])
    d_usd = points["d_paid"] * rents[points["d_pool"].astype(int)]
    p_usd = points["p_paid"] * rents[points["p_pool"].astype(int)]
    new = d_usd * np.where(points["d_pool"] == pool, factor, 1.0) + p_usd * np.where(
        points["p_pool"] == pool, factor, 1.0
    )
    scale = new / (d_usd + p_usd)
    return points.replaced(
        usd_per_hour=points["usd_per_hour"] * scale,
        usd_per_mtok=points["usd_per_mtok"] * scale,
    )
