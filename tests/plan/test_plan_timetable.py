"""Step intervals as a dimension of the search: what a timetable promises, what it costs, and that its rows agree with the step law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ridgepoint.cost import ClosedLoop, closed_loop
from ridgepoint.cost.energy import DEFAULT_ENERGY
from ridgepoint.cost.queueing import mean_wait_s, worst_wait_s
from ridgepoint.errors import ConfigError
from ridgepoint.plan.choose import upper
from ridgepoint.plan.explain import decode_layout
from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.report import report
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.timetable import INTERVALS_MS, intervals_worth_searching, next_departure
from ridgepoint.plan.workload import Goal, Workload

MODEL, POOL = named_model("qwen3-235b-a22b"), parse_pool("h200", "fp8")
WORK = Workload(input_tokens=2000, output_tokens=500, users=300)


def ask(goal: Goal, work: Workload = WORK, **changes: Any) -> Plan:
    changes.setdefault("disaggregate", False)
    return plan(Question(model=MODEL, pools=(POOL,), workload=work, goal=goal, **changes))


@pytest.fixture(scope="module")
def free() -> Plan:
    return ask(Goal(tpot_s=0.05))


def test_a_step_waits_for_the_next_departure() -> None:
    intervals = np.array([0.01, 0.02, 0.05])
    assert next_departure(np.array([0.004, 0.01, 0.011, 0.05, 0.06]), intervals).tolist() == [
        0.01,
        0.01,
        0.02,
        0.05,
        np.inf,
    ]


def test_the_grid_and_the_intervals_of_the_goal() -> None:
    drafted = replace(WORK, draft_tokens=1, acceptance=0.5)
    found = intervals_worth_searching(drafted, Goal(tpot_s=0.017, wait_s=0.037))
    assert set(found) == {*(ms / 1e3 for ms in INTERVALS_MS), 0.017 * 1.5, 0.0185}
    assert (np.diff(np.array(INTERVALS_MS)) > 0).all()


def test_batch_times_interval_is_searched(free: Plan) -> None:
    points = free.points
    timed = points.pick(points["timetable"] == 1)
    assert len(np.unique(timed["interval_s"])) > 10 and len(np.unique(timed["batch"])) > 20
    assert (points["timetable"] == 0).any()
    for batch in np.unique(timed["batch"])[::5]:
        assert len(np.unique(timed["interval_s"][timed["batch"] == batch])) > 1


def test_rows_of_a_timetable_agree_with_the_step_law_asked_alone(free: Plan) -> None:
    timed = free.points.pick(free.points["timetable"] == 1)
    intervals = intervals_worth_searching(WORK, free.question.goal)
    for index in range(0, len(timed), max(1, len(timed) // 25)):
        row = timed.row(index)
        load = ClosedLoop(input_tokens=2000.0, output_tokens=500.0, concurrency=row["batch"])
        alone = closed_loop(
            MODEL.spec, POOL.chip, decode_layout(row), POOL.precision, load, POOL.calibration, chunk_tokens=row["chunk"]
        )
        mixed = float(alone.mixed.estimate_s)
        assert row["interval_s"] == min(interval for interval in intervals if interval >= mixed * (1 - 1e-9))
        assert row["tpot_s"] == row["interval_s"] and row["worst_wait_s"] == worst_wait_s(row["interval_s"])
        assert float(alone.decode.estimate_s) <= row["busy_tpot_s"] <= mixed
        assert row["ttft_s"] >= mean_wait_s(row["interval_s"])


def test_steadiness_costs_slack_and_power_of_waiting_chips(free: Plan) -> None:
    """For the same layout, batch and chunk a timetable is never faster, never cheaper, and burns at least static power."""
    points = free.points
    keys = ("d_tp", "d_dp", "d_ep", "d_pp", "batch", "chunk")
    freely = {tuple(points[k][i] for k in keys): i for i in np.flatnonzero(points["timetable"] == 0)}
    compared = 0
    for i in np.flatnonzero(points["timetable"] == 1):
        other = freely.get(tuple(points[k][i] for k in keys))
        if other is None:
            continue
        compared += 1
        assert (
            points["tpot_s"][i] > 0.6 * points["tpot_s"][other]
        )  # a full chunk on every step is more than prompts ask for
        assert points["watts"][i] >= DEFAULT_ENERGY.static_frac * points["chips"][i] * POOL.chip.need("spec_tdp_w", "")
    assert compared > 100


def test_a_limit_on_the_wait_is_kept_by_a_timetable(free: Plan) -> None:
    assert free.choice.chosen["timetable"] == 0  # nothing asks for steadiness
    asked = ask(Goal(tpot_s=0.05, wait_s=0.08))
    row = asked.choice.chosen
    assert asked.choice.feasible and row["worst_wait_s"] <= 0.08
    strict = ask(Goal(wait_s=0.001))
    assert not strict.choice.feasible and any(f.metric == "worst_wait_s" for f in strict.choice.failures)


def test_an_interval_holds_while_the_work_fits_it(free: Plan) -> None:
    """At 90 % a free-running time per token widens; a timetable's only where its work might not fit."""
    points = free.points
    timed = points["timetable"] == 1
    at_90 = upper(points, "tpot_s", 0.9) / points["tpot_s"]
    assert at_90[~timed].min() > 1.1
    assert (at_90[timed] == 1.0).any() and at_90[timed].max() <= at_90[~timed].max() + 1e-9


def test_stated_intervals_alone() -> None:
    asked = ask(Goal(), intervals_s=(0.04, 0.03), disaggregate=True)
    assert set(np.unique(asked.points["interval_s"])) <= {0.03, 0.04}
    assert (asked.points["timetable"] == 1).all() and {0.0, 1.0} == set(asked.points["kind"])
    decode = asked.points.pick(asked.points["kind"] == 1)
    assert (decode["busy_tpot_s"] <= decode["tpot_s"] + 1e-12).all()
    with pytest.raises(ConfigError, match="a step interval must be positive, got -1 ms"):
        ask(Goal(), intervals_s=(-0.001,))


def test_a_rate_is_carried_on_a_timetable() -> None:
    work = replace(WORK, users=None, requests_per_s=20.0)
    points = ask(Goal(), work).points
    timed = points.pick(points["timetable"] == 1)
    held = timed["d_instances"] * timed["batch"] / (timed["ttft_s"] + 500 * timed["tpot_s"])
    assert len(timed) > 50 and np.abs(held / 20.0 - 1).max() <= 0.05


def test_the_output_says_what_was_searched_and_what_was_chosen(free: Plan) -> None:
    data = report(free)
    searched = data["question"]["searched"]
    assert searched["free_running"] is True and len(searched["step_interval_s"]) >= len(INTERVALS_MS)
    assert data["choice"]["timetable"] is False
    wait = data["choice"]["figures"]["worst_wait_s"]
    assert wait["middle"] == pytest.approx(2 * data["choice"]["figures"]["interval_s"]["middle"])
    stated = report(ask(Goal(), intervals_s=(0.04,)))
    assert stated["question"]["intervals_s"] == [0.04] and stated["choice"]["timetable"] is True
    tpot = stated["choice"]["figures"]["tpot_s"]
    assert tpot["low"] == tpot["middle"] == 0.04 <= tpot["high"]
