"""Prices inverted: the lecture's crossover, what cancels within a vendor, and what a price cannot say."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.tiers import tiers_of
from ridgepoint.errors import ConfigError
from ridgepoint.plan.assume import Assumption, infer, parse_range, sample
from ridgepoint.plan.pricelist import ListPrice
from ridgepoint.plan.prices import PriceInferences, defaults, infer_from_price, relative_sizes

CASES = Path(__file__).parents[3] / "shared" / "data" / "planner_cases.csv"
CHIPS = [accelerator(name) for name in ("h100", "h200", "b200", "gb200")]
TABLE = defaults(CHIPS)
HUNDRED_BILLION = Assumption(name="active_params", low=1e11, high=1e11, unit="params", why="stated")


def price(**changes: float) -> ListPrice:
    base = {
        "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 12.0, "cached_input_usd_per_mtok": 0.2, "long_threshold_tokens": 200_000,
        "long_input_usd_per_mtok": 4.0, "long_output_usd_per_mtok": 18.0,
    }  # fmt: skip
    return ListPrice(vendor="v", model="m", **(base | changes))  # type: ignore[arg-type]


def named(result: PriceInferences, start: str):  # type: ignore[no-untyped-def]
    return next(item for item in result.inferences if item.name.startswith(start))


def test_crossover_at_200k_means_about_two_kilobytes_a_token() -> None:
    """The lecture's argument: 100 B active, 300 multiply-adds per byte, x1.5 output above 200k."""
    found = named(infer_from_price(price(), TABLE, (), active_params=HUNDRED_BILLION), "KV bytes per token (crossover)")
    assert found.low < 2000 < found.high
    if CASES.exists():
        row = next(row for row in csv.DictReader(CASES.open()) if row["case_id"] == "lecture-010")
        expected, tolerance = float(row["expected"]), float(row["rel_tol"])
        assert abs(found.middle - expected) <= tolerance * expected


def test_crossover_formula_is_exact_when_nothing_is_unknown() -> None:
    fixed = {name: Assumption(name=name, low=1.0, high=1.0, unit=a.unit, why="test") for name, a in TABLE.items()}
    fixed["long_context_over_threshold"] = Assumption(
        name="long_context_over_threshold", low=2.0, high=2.0, unit="", why="test"
    )
    fixed["ridge"] = Assumption(name="ridge", low=600.0, high=600.0, unit="FLOP/B", why="test")
    found = named(infer_from_price(price(), fixed, (), active_params=HUNDRED_BILLION), "KV bytes per token (crossover)")
    assert found.low == pytest.approx(2e11 / 600 / 200_000) == pytest.approx(found.high)
    assert found.width_shares == ()


def test_the_margin_cancels_from_ratios_but_not_from_sizes() -> None:
    once = infer_from_price(price(), TABLE, ())
    doubled = price(
        input_usd_per_mtok=4.0,
        output_usd_per_mtok=24.0,
        cached_input_usd_per_mtok=0.4,
        long_input_usd_per_mtok=8.0,
        long_output_usd_per_mtok=36.0,
    )
    twice = infer_from_price(doubled, TABLE, ())
    assert named(twice, "chip-seconds").middle == pytest.approx(named(once, "chip-seconds").middle)
    assert named(twice, "cost of a cache hit").middle == pytest.approx(named(once, "cost of a cache hit").middle)
    assert named(twice, "active parameters").middle == pytest.approx(2 * named(once, "active parameters").middle)


def test_output_over_input_bounds_decode_utilisation() -> None:
    found = named(
        infer_from_price(price(output_usd_per_mtok=10.0, long_output_usd_per_mtok=15.0), TABLE, ()), "FLOP utilisation"
    )
    assert (
        TABLE["prefill_flops_frac"].low / 5 * 0.7
        <= found.low
        < found.high
        <= TABLE["prefill_flops_frac"].high / 5 * 1.4
    )


def test_stated_parameters_turn_the_first_argument_into_a_margin() -> None:
    result = infer_from_price(price(), TABLE, (), active_params=HUNDRED_BILLION)
    assert result.inferences[0].name == "input price over its accelerator cost"
    dearer = infer_from_price(price(input_usd_per_mtok=4.0), TABLE, (), active_params=HUNDRED_BILLION)
    assert dearer.inferences[0].middle == pytest.approx(2 * result.inferences[0].middle)


def test_deepseek_prices_contain_its_37_billion() -> None:
    pytest.importorskip("genai_prices")
    from ridgepoint.plan.pricelist import list_price

    day = datetime(2026, 8, 1, 12, tzinfo=UTC)
    found = infer_from_price(list_price("deepseek", "deepseek-chat", day), TABLE, ()).inferences[0]
    assert found.low < 37e9 < found.high


def test_storage_comes_from_the_hour_minus_five_minutes() -> None:
    written = price(cache_write_usd_per_mtok=3.75, cache_write_1h_usd_per_mtok=6.0)
    one = Assumption(name="margin", low=1.0, high=1.0, unit="x", why="test")
    result = infer_from_price(written, TABLE | {"margin": one}, tiers_of(CHIPS[0]))
    assert named(result, "keeping one million").middle == pytest.approx(2.25 / (55 / 60))
    hbm, flash = (
        named(result, "KV bytes per token if held in memory"),
        named(result, "KV bytes per token if held in local"),
    )
    assert hbm.middle < flash.middle  # a cheaper tier's price would pay for more bytes
    assert {hbm.bound, flash.bound} == {"upper"}
    hourly = infer_from_price(price(cache_storage_usd_per_mtok_hour=4.5), TABLE | {"margin": one}, tiers_of(CHIPS[0]))
    assert named(hourly, "keeping one million").middle == pytest.approx(4.5)


def test_what_cannot_be_inferred_is_said() -> None:
    plain = ListPrice(vendor="v", model="m", input_usd_per_mtok=1.0, output_usd_per_mtok=5.0)
    result = infer_from_price(plain, TABLE, ())
    assert [line.split(":")[0] for line in result.not_inferred] == [
        "KV bytes per token from the crossover",
        "cache-hit cost share",
        "cached-token storage",
    ]


def test_a_tier_that_cannot_pay_for_the_crossover_is_named() -> None:
    cheap = price(cache_storage_usd_per_mtok_hour=1e-4)
    result = infer_from_price(cheap, TABLE, tiers_of(CHIPS[0]), active_params=HUNDRED_BILLION)
    assert any("memory of H100" in line for line in result.disagreements)
    assert not any("spinning disk" in line for line in result.disagreements)


def test_relative_sizes_within_a_vendor() -> None:
    small, large = price(input_usd_per_mtok=0.5), price(input_usd_per_mtok=5.0)
    (first, second) = relative_sizes([large, small], TABLE)
    assert (first[2], second[2]) == (10.0, 1.0)
    assert first[1] < 10 < first[3]


def test_intervals_are_deterministic_and_hold_their_share() -> None:
    table = [
        Assumption(name="a", low=1.0, high=4.0, unit="", why=""),
        Assumption(name="b", low=1.0, high=2.0, unit="", why=""),
    ]
    one = infer("x", "", "", "", table, lambda a, b: a * b)
    assert one == infer("x", "", "", "", table, lambda a, b: a * b)
    drawn = sample(table)
    inside = np.mean((drawn["a"] * drawn["b"] >= one.low) & (drawn["a"] * drawn["b"] <= one.high))
    assert inside == pytest.approx(0.8, abs=0.01)
    assert dict(one.width_shares)["a"] == pytest.approx(0.8, abs=0.03)  # log widths 2:1, so variances 4:1


@pytest.mark.parametrize("text", ["x", "1:2:3", "0", "-1:2", "3:2", "1:inf"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_range("margin", text, "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"input_usd_per_mtok": 0.0},
        {"output_usd_per_mtok": -1.0},
        {"long_threshold_tokens": None},
        {"cached_input_usd_per_mtok": -0.1},
    ],
)
def test_bad_prices_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        price(**changes)
