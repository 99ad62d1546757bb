"""Whole units: counts against packing instances one by one, and prices that follow."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerators
from ridgepoint.plan.named import named_model
from ridgepoint.plan.points import Points
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.purchase import paid_by_two, paid_chips, units_of
from ridgepoint.plan.report import report
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.workload import Goal, Workload


def arrays(*values: float) -> list[np.ndarray]:
    return [np.array([float(value)]) for value in values]


def pack(sizes: list[int], unit: int) -> int:
    """Units by first fit, in the order given; an instance larger than a unit takes whole ones, and leaves its last one's gap."""
    gaps: list[int] = []
    for size in sizes:
        if size > unit:
            whole = math.ceil(size / unit)
            gaps += [0] * (whole - 1) + [whole * unit - size]
            continue
        place = next((i for i, gap in enumerate(gaps) if gap >= size), None)
        if place is None:
            gaps.append(unit - size)
        else:
            gaps[place] -= size
    return len(gaps)


@pytest.mark.parametrize(
    ("n", "chips", "unit"), list(itertools.product((1, 2, 5, 9), (1, 3, 4, 6, 8, 12, 64, 96), (1, 8, 72)))
)
def test_units_of_one_kind_are_those_packed_one_by_one(n: int, chips: int, unit: int) -> None:
    packed = pack([chips] * n, unit) if chips <= unit else n * math.ceil(chips / unit)
    assert units_of(*arrays(n, chips), unit)[0] == packed


@pytest.mark.parametrize(
    ("n", "chips", "m", "other"), [(3, 6, 2, 2), (1, 64, 2, 4), (5, 8, 3, 1), (2, 12, 5, 2), (1, 2, 1, 2), (7, 3, 4, 5)]
)
def test_two_kinds_fill_each_other_s_gaps(n: int, chips: int, m: int, other: int) -> None:
    for unit in (8, 72):
        both = paid_by_two((*arrays(n, chips),), (*arrays(m, other),), unit, None)  # type: ignore[arg-type]
        best = min(pack([chips] * n + [other] * m, unit), pack([other] * m + [chips] * n, unit))
        assert both[0][0] + both[1][0] == best * unit
        assert both[0][0] / both[1][0] == pytest.approx(n * chips / (m * other))


def test_a_stated_count_is_all_there_is_to_pay() -> None:
    assert paid_chips(*arrays(1, 1), 8, 1)[0] == 1
    assert paid_chips(*arrays(3, 4), 8, 12)[0] == 12
    assert paid_chips(*arrays(3, 4), 8, None)[0] == 16
    assert paid_chips(*arrays(4, 4), 8, 12)[0] == 16  # the plan itself needs more: that breaks another limit


def test_without_a_stated_load_instances_fill_their_unit() -> None:
    assert paid_chips(*arrays(1, 2), 8, None, filled=True)[0] == 2
    assert paid_chips(*arrays(1, 3), 8, None, filled=True)[0] == 4  # two of three leave two idle
    assert paid_chips(*arrays(1, 64), 72, None, filled=True)[0] == 72


def test_every_multi_chip_board_says_how_it_is_sold() -> None:
    unknown = {chip.id for chip in accelerators().values() if chip.unit_chips is None}
    assert unknown == {"trn3"}
    assert all((chip.unit_chips or 1) <= (chip.scaleup_domain_chips or 1) for chip in accelerators().values())


def ask(*, share: bool, users: int | None = 40, hardware: str = "h200") -> Plan:
    pool = parse_pool(hardware, "mxfp4", share_units=share)
    work = Workload(input_tokens=2000, output_tokens=500, users=users)
    return plan(Question(model=named_model("gpt-oss-120b"), pools=(pool,), workload=work, goal=Goal(tpot_s=0.03)))


def recomputed(points: Points, rent: float) -> np.ndarray:
    return points["paid_chips"] * rent


def test_idle_chips_of_a_node_are_paid_for_unless_shared() -> None:
    whole, shared = ask(share=False), ask(share=True)
    rent = whole.question.pools[0].usd_per_hour[1]
    for found in (whole, shared):
        points = found.points
        assert np.allclose(points["usd_per_hour"], recomputed(points, rent))
        assert (points["paid_chips"] >= points["chips"] - 1e-9).all()
    assert np.allclose(shared.points["paid_chips"], shared.points["chips"])
    assert np.allclose(whole.points["paid_chips"] % 8, 0)
    assert shared.choice.chosen["usd_per_hour"] < whole.choice.chosen["usd_per_hour"]
    assert any("sharing nodes" in change.what for change in whole.changes)


def test_the_output_says_what_is_paid() -> None:
    whole = report(ask(share=False))
    figures = whole["choice"]["figures"]
    assert figures["paid_chips"]["middle"] % 8 == 0 and figures["paid_chips"]["middle"] >= figures["chips"]["middle"]
    assert whole["question"]["pools"][0]["unit_chips"] == 8 and whole["question"]["pools"][0]["share_units"] is False
    assert any("in units of 8 chips, idle ones included" in line for line in whole["assumptions"])
    assert any("others sharing its nodes" in line for line in report(ask(share=True))["assumptions"])
    one = report(ask(share=False, hardware="h200:1"))
    assert one["choice"]["figures"]["paid_chips"]["middle"] == 1
