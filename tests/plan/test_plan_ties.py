"""Of deployments an estimate cannot tell apart the simplest is chosen; and pairing pools does not invent throughput for few users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.plan.choose import TIE_FRAC, choose
from ridgepoint.plan.named import named_model
from ridgepoint.plan.points import COLUMNS, Points
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.render import WORTH_SAYING_FRAC
from ridgepoint.plan.search import Question, plan, price_all
from ridgepoint.plan.workload import Goal, Workload


def table(*rows: dict[str, float]) -> Points:
    plain = dict.fromkeys(COLUMNS, 0.0) | {
        "d_pp": 1.0, "chips": 1.0, "paid_chips": 8.0, "tpot_s": 0.01, "ttft_s": 0.1, "usd_per_mtok": 1.0, "watts": 100.0, "sigma": 0.15, "sigma_ttft": 0.3,
    }  # fmt: skip
    return Points({name: np.array([(plain | row)[name] for row in rows]) for name in COLUMNS})


LESS = 1 - TIE_FRAC / 2


@pytest.mark.parametrize(
    ("dearer", "least"),
    [
        ({"chips": 1}, {"chips": 2, "usd_per_mtok": LESS}),
        ({"chips": 2, "kind": 1}, {"chips": 3, "usd_per_mtok": LESS}),
        ({"kind": 0}, {"kind": 1, "usd_per_mtok": LESS}),
        ({"timetable": 0}, {"timetable": 1, "usd_per_mtok": LESS}),
        ({"draft": 0}, {"draft": 3, "usd_per_mtok": LESS}),
        ({"d_pp": 1}, {"d_pp": 2, "usd_per_mtok": LESS}),
        ({"watts": 90}, {"watts": np.nan}),
        ({"tpot_s": 0.009}, {"tpot_s": 0.01}),
    ],
)  # fmt: skip
def test_the_simpler_of_two_alike_is_chosen(dearer: dict[str, float], least: dict[str, float]) -> None:
    for rows in ((dearer, least), (least, dearer)):
        found = choose(table(*rows), Goal())
        assert all(np.array_equal(found.chosen[name], value, equal_nan=True) for name, value in dearer.items())
        assert found.saving_frac == pytest.approx(TIE_FRAC / 2 if "usd_per_mtok" in least else 0.0)


def test_beyond_the_tolerance_the_objective_decides() -> None:
    found = choose(table({"chips": 1}, {"chips": 9, "kind": 1, "usd_per_mtok": 1 - 2 * TIE_FRAC}), Goal())
    assert found.chosen["chips"] == 9 and found.saving_frac == 0.0


def test_the_tolerance_is_well_inside_the_interval() -> None:
    pool = parse_pool("h200", "fp8")
    assert pool.calibration.uncertainty * 1.28 > 5 * TIE_FRAC


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 2.0), st.integers(1, 9), st.integers(0, 1)), min_size=1, max_size=20))
def test_a_choice_costs_at_most_the_tolerance_more_and_never_more_chips(rows: list[tuple[float, int, int]]) -> None:
    found = choose(table(*({"usd_per_mtok": usd, "chips": chips, "kind": kind} for usd, chips, kind in rows)), Goal())
    least = min(rows)
    assert found.chosen["usd_per_mtok"] <= least[0] * (1 + TIE_FRAC) and found.chosen["chips"] <= least[1]


def question(**load: int) -> Question:
    pool = parse_pool("h200", "fp8", share_units=True)
    return Question(model=named_model("qwen3-30b-a3b"), pools=(pool,), workload=Workload(**load), goal=Goal())


def test_one_user_of_a_small_model_gets_one_chip() -> None:
    found = plan(question(users=1)).choice
    assert found.chosen["chips"] == 1 and found.chosen["kind"] == 0
    assert found.saving_frac < WORTH_SAYING_FRAC


@pytest.mark.parametrize("users", [1, 40])
def test_users_share_their_time_between_waiting_and_reading(users: int) -> None:
    """Little's law over the whole cycle: nobody decodes while his prompt is computed, in whichever pool that happens."""
    asked = question(users=users)
    points = price_all(asked)
    cycle_s = points["ttft_s"] + asked.workload.written_tokens * points["tpot_s"]
    in_flight = points["requests_per_s"] * cycle_s
    for kind in (0, 1):
        assert in_flight[(points["kind"] == kind) & (points["timetable"] == 0)] == pytest.approx(users, rel=1e-6)
