"""Hold, demote or drop: the schedule is the lower envelope of its lines, and a hold without a chance of reuse loses money."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.catalog.tiers import hbm_tier, lower_tiers, tiers_of
from ridgepoint.cost import SERVING, Layout, Precision, kv_bytes_per_seq
from ridgepoint.errors import CatalogError, ConfigError
from ridgepoint.plan.hold import HoldPlan, plan_hold

CASES = Path(__file__).parents[3] / "shared" / "data" / "planner_cases.csv"
CHIP = accelerator("h200")
SPEC = model_spec("deepseek-v3")
LAYOUT = Layout(tp=8, ep=8)


def hold(prob: float = 0.5, context: int = 16_000, mean: float | None = 60.0, layout: Layout = LAYOUT) -> HoldPlan:
    return plan_hold(
        SPEC,
        CHIP,
        layout,
        Precision.named("fp8"),
        SERVING,
        tiers_of(CHIP),
        context_tokens=context,
        reuse_prob=prob,
        mean_pause_s=mean,
    )


def cost(plan: HoldPlan, way_id: str, pause_s: float) -> float:
    way = next(way for way in plan.ways if way.id == way_id)
    return (
        way.estimate_write_usd.middle
        + plan.reuse_prob * way.estimate_resume_usd.middle
        + way.estimate_rate_usd_per_s.middle * pause_s
    )


@settings(max_examples=40, deadline=None)
@given(prob=st.floats(0.01, 1.0), context=st.integers(100, 100_000), pause=st.floats(0.0, 1e7))
def test_schedule_is_the_cheapest_way_at_every_pause(prob: float, context: int, pause: float) -> None:
    plan = hold(prob, context)
    chosen = [way for start, way in plan.cheapest if start <= pause][-1]
    least = min(cost(plan, way.id, pause) for way in plan.ways)
    assert cost(plan, chosen, pause) == pytest.approx(least, rel=1e-9, abs=1e-18)


def test_without_reuse_every_hold_loses() -> None:
    plan = hold(prob=0.0)
    assert plan.cheapest == ((0.0, "recompute"),)
    for way in plan.ways[:-1]:
        assert way.breakeven_vs_recompute_s is not None and way.breakeven_vs_recompute_s.high == 0.0
        assert way.best_ttl_s is not None and way.best_ttl_s.high == 0.0


def test_certain_reuse_is_held_for_ever_where_it_pays() -> None:
    ddr = next(way for way in hold(prob=1.0).ways if way.id == "ddr")
    assert ddr.best_ttl_s is not None and ddr.best_ttl_s.low == float("inf")


def test_breakeven_grows_with_reuse_and_falls_with_the_price_of_holding() -> None:
    low, high = hold(prob=0.2), hold(prob=0.8)
    for a, b in zip(low.ways[:-1], high.ways[:-1], strict=True):
        assert a.breakeven_vs_recompute_s is not None and b.breakeven_vs_recompute_s is not None
        assert a.breakeven_vs_recompute_s.middle <= b.breakeven_vs_recompute_s.middle
    by_id = {way.id: way for way in high.ways}
    assert (
        by_id["hbm"].breakeven_vs_recompute_s.high
        < by_id["ddr"].breakeven_vs_recompute_s.high
        < by_id["flash"].breakeven_vs_recompute_s.high
    )  # type: ignore[union-attr]


def test_hbm_breakeven_is_the_formula() -> None:
    """p x recompute / (bytes x USD per byte-second), rent cancelling from both sides."""
    plan = hold(prob=0.5)
    hbm, drop = plan.ways[0], plan.ways[-1]
    expected = 0.5 * drop.estimate_resume_usd.low / hbm.estimate_rate_usd_per_s.low
    assert hbm.breakeven_vs_recompute_s is not None
    assert hbm.breakeven_vs_recompute_s.low == pytest.approx(expected)
    assert plan.kv_bytes == kv_bytes_per_seq(SPEC, 16_000.0, "bf16")


def test_data_parallel_attention_reads_a_sequence_through_one_link() -> None:
    whole = next(way for way in hold(layout=Layout(tp=8, ep=8)).ways if way.id == "ddr")
    one = next(way for way in hold(layout=Layout(dp_attention=8, ep=8)).ways if way.id == "ddr")
    assert one.estimate_resume_s == pytest.approx(8 * whole.estimate_resume_s, rel=1e-3)


@pytest.mark.parametrize("changes", [{"prob": -0.1}, {"prob": 1.1}, {"context": 0}, {"mean": 0.0}])
def test_bad_questions_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        hold(**changes)  # type: ignore[arg-type]


def test_a_chip_without_a_rent_has_no_price_of_holding() -> None:
    with pytest.raises(CatalogError, match="usd_per_hour"):
        hbm_tier(accelerator("rubin-nvl72"))


def test_tiers_drain_within_the_lectures_orders_of_magnitude() -> None:
    if not CASES.exists():
        pytest.skip("shared data absent")
    rows = {row["case_id"]: row for row in csv.DictReader(CASES.open())}
    drains = {"lecture-006": hbm_tier(accelerator("h100")).drain_s} | dict(
        zip(("lecture-007", "lecture-008", "lecture-009"), (tier.drain_s for tier in lower_tiers()), strict=True)
    )
    for case, drain in drains.items():
        expected, tolerance = float(rows[case]["expected"]), float(rows[case]["rel_tol"])
        assert abs(drain - expected) <= tolerance * expected, case
