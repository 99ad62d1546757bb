"""The benchmark's own arithmetic: figures and picks by hand, folds that never see what they predict, and that it all runs."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

figures = pytest.importorskip("figures")
picks = pytest.importorskip("picks")
measured_rows = pytest.importorskip("measured_rows")

needs_table = pytest.mark.skipif(not measured_rows.available(), reason="no shared measured tables here")


def group(measured: list[float], predicted: list[float], margin: float = 0.0) -> Any:
    """Twice the clients in each configuration, on one chip."""
    clients = 2.0 ** np.arange(len(measured))
    return picks.Group(np.array(measured), np.array(predicted), 1.0 / clients, np.full(len(measured), margin))


def test_figures_by_hand() -> None:
    assert figures.spread_of(np.array([0.1] * 8 + [1.0] * 2)) == pytest.approx(0.28 / 1.2816, rel=0.02)
    assert figures.ranks(np.array([3.0, 1.0, 1.0])).tolist() == [2.0, 0.5, 0.5]
    falling, rising = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert figures.rank_correlation([(rising, rising**2)]) == pytest.approx(1.0)
    assert figures.rank_correlation([(rising, falling)]) == pytest.approx(-1.0)
    assert figures.coverage(np.array([0.0, 0.3]), np.array([0.1, 0.1])) == 0.5
    error = figures.error_summary(np.log(np.array([1.1, 1.1, 0.5])))
    assert error["median_frac"] == pytest.approx(0.1) and error["bias_frac"] == pytest.approx(0.1)


def test_a_limit_must_tell_configurations_apart() -> None:
    assert picks.goals(np.array([0.008, 0.025])) == [0.010, 0.020]
    assert picks.goals(np.array([0.011, 0.012])) == []
    assert all(0.008 <= limit < 0.025 for limit in picks.all_limits(np.array([0.008, 0.025])))


def test_the_pick_is_the_cheapest_that_seems_to_keep_the_limit() -> None:
    exact = group([0.010, 0.012, 0.016, 0.030], [0.010, 0.012, 0.016, 0.030])
    assert picks.pick(exact, 0.020) == 2
    (outcome,) = picks.outcomes([exact], lambda _: [0.020])
    assert outcome.kept and outcome.excess_frac == 0.0
    careful = group([0.010, 0.012, 0.016, 0.030], [0.010, 0.012, 0.016, 0.030], margin=math.log(1.5))
    (outcome,) = picks.outcomes([careful], lambda _: [0.020])  # 16 ms seems too near: one batch step is lost
    assert outcome.kept and outcome.excess_frac == pytest.approx((0.012 / 2) / (0.016 / 4) - 1)
    fooled = group([0.010, 0.012, 0.016, 0.030], [0.010, 0.012, 0.016, 0.018])
    (outcome,) = picks.outcomes([fooled], lambda _: [0.020])
    assert not outcome.kept and math.isnan(outcome.excess_frac)
    assert picks.summary([outcome])["median_excess_cost_frac"] is None
    assert picks.pick(exact, 0.005) == 0  # nothing keeps it: the fastest


def test_the_margin_is_the_least_that_keeps_enough() -> None:
    optimist = [group([0.011, 0.0165, 0.0242, 0.0363], [0.010, 0.015, 0.022, 0.033])]
    limits = lambda _: [0.0164, 0.0241, 0.0362]  # noqa: E731 - each just below a measured time, above its prediction
    margin = picks.margin_that_keeps(optimist, limits, 0.9)
    assert margin == pytest.approx(math.log(1.1), abs=0.02)
    assert picks.keeps_frac(picks.outcomes(picks.with_margin(optimist, margin), limits)) == 1.0
    assert picks.keeps_frac(picks.outcomes(picks.with_margin(optimist, margin - 0.02), limits)) < 0.9
    hopeless = [group([0.02, 0.03, 0.04, 0.05], [0.05, 0.04, 0.03, 0.02])]
    assert picks.margin_that_keeps(hopeless, lambda _: [0.021], 0.9) == 0.0  # picks the slowest whatever the margin


def test_the_excess_is_taken_apart() -> None:
    careful = [group([0.010, 0.012, 0.016, 0.030], [0.010, 0.012, 0.016, 0.030], margin=math.log(1.5))]
    parts = picks.what_costs(careful, lambda _: [0.020])
    assert parts["predicted times, no margin"]["mean_excess_cost_frac"] == 0.0
    assert parts["exact times, same margin"]["mean_excess_cost_frac"] == pytest.approx(0.5)
    assert parts["predicted ranking, exact limits"]["mean_excess_cost_frac"] == 0.0


def test_blurred_times_cost_more() -> None:
    times = [0.006, 0.008, 0.012, 0.017, 0.026, 0.045, 0.080, 0.150]
    blurred = picks.excess_by_spread([group(times, times)], picks.all_limits, spreads=(0.02, 0.30))
    assert blurred["0.02"]["mean_excess_cost_frac"] < blurred["0.30"]["mean_excess_cost_frac"]


def _candidates(errors: list[float], margin: float = 0.0) -> object:
    """The first two of one build, the others of another in two layouts; clients double as times grow by 1.4."""
    from dataclasses import replace
    from types import SimpleNamespace

    rows = tuple(
        SimpleNamespace(model="m", hardware=SimpleNamespace(id="h"), engine=engine, version="1", precision_name="fp8", layout=tp)
        for engine, tp in (("a", 1), ("a", 1), ("b", 1), ("b", 2))
    )  # fmt: skip
    times = np.array([0.010, 0.014, 0.020, 0.028])
    return replace(group(list(times), list(times * np.exp(errors)), margin=margin), rows=rows)


def test_an_error_that_a_group_shares_costs_no_ranking() -> None:
    regret = pytest.importorskip("regret")
    limits = lambda _: [0.0145, 0.0205, 0.0285]  # noqa: E731 - each just above a measured time
    exact = regret.taken_apart([_candidates([0, 0, 0, 0], margin=0.1)], limits)
    assert exact["margin"] == exact["all"] > 0.2 and exact["ranking"] == exact["shared error"] == 0.0
    slow = regret.taken_apart([_candidates([0.1, 0.1, 0.1, 0.1])], limits)
    assert slow["margin"] == 0.0 and slow["shared error"] == slow["all"] > 0.2 and slow["ranking"] == 0.0
    fast = regret.taken_apart([_candidates([-0.1, -0.1, -0.1, -0.1])], limits)
    assert fast["all"] == 0.0 and fast["ranking broken_frac"] == 0.0  # no time lies within a tenth above its limit
    assert regret.why_missed([_candidates([0, 0, 0, 0], margin=0.1)], limits) == {"within the margin": 1.0}
    assert regret.why_missed([_candidates([0.1, 0.1, 0.1, 0.1])], limits) == {"predicted over the limit": 1.0}
    assert regret.why_missed([_candidates([0.0, 0.0, -0.8, -0.9])], lambda _: [0.0145]) == {"predicted dearer": 1.0}
    mixed = regret.taken_apart([_candidates([0.0, 0.1, 0.0, -0.1])], limits)
    assert mixed["shared error"] == 0.0 < mixed["ranking"]


def test_what_predictors_with_part_of_the_errors_reach() -> None:
    regret = pytest.importorskip("regret")
    found = _candidates([0.1, 0.3, 0.0, -0.2])
    shared = {name: regret.shared_by([found], owner)[0] for name, owner in regret.OWNERS.items()}
    assert shared["the group"] == pytest.approx([0.05] * 4)
    assert shared["the engine build"] == pytest.approx([0.2, 0.2, -0.1, -0.1])
    assert shared["the build in one layout"] == pytest.approx([0.2, 0.2, 0.0, -0.2])
    limits = lambda _: [0.0142, 0.0202, 0.0282]  # noqa: E731
    parts = regret.by_whose_error([found], limits)
    for name, part in shared.items():
        assert parts[f"only what {name} shares"]["spread"] == pytest.approx(np.sqrt(np.mean(part**2)))
    assert all(part["keeps_limit_frac"] == 1.0 for part in parts.values())
    step = regret.grid_step([found], limits)
    assert step["median_nearest_log"] == pytest.approx(math.log(0.0202 / 0.020))
    drawn = regret.shared_error_alone([found], limits)
    assert drawn["spread"] == pytest.approx(0.05) and drawn["keeps_limit_frac"] >= 0.9


@needs_table
def test_a_system_left_out_is_judged_by_the_uncertainty_the_package_would_state() -> None:
    """Of the rows of the other systems alone, by the procedure that writes the shipped constants."""
    import fit_calibration
    import held_out

    rows = [row for row in measured_rows.serving_rows()[0] if row.refused is None][::48]
    folds = held_out.Folds(rows, held_out.by_system)
    system = folds.values[0]
    stated = fit_calibration.calibrations([row for row in rows if row.hardware.id != system])[0]
    assert held_out.stated_spreads(folds.inner(system)) == (stated.uncertainty, stated.ttft_uncertainty)


@needs_table
def test_what_a_pick_differs_by() -> None:
    from dataclasses import replace

    row = measured_rows.serving_rows()[0][0]
    rows = tuple(
        replace(row, concurrency=clients, measure_tpot_s=s) for clients, s in ((1.0, 0.010), (2.0, 0.012), (4.0, 0.016))
    )
    careful = replace(group([0.010, 0.012, 0.016], [0.010, 0.012, 0.016], margin=math.log(1.5)), rows=rows)
    found = picks.picks_differ_by([careful], lambda _: [0.020, 0.011, 0.030])
    assert found["fewer clients"]["limits_frac"] == pytest.approx(1 / 3)  # at 20 ms, 16 ms seems too near
    assert found["fewer clients"]["log_excess"] == pytest.approx(math.log(1.5) / 3)
    assert found["nothing"]["limits_frac"] == pytest.approx(2 / 3)
    assert picks.differs_by(rows[0], replace(rows[0], version="other")) == "engine version"
    assert picks.differs_by(rows[0], replace(rows[1], engine="other")) == "engine or precision"


@needs_table
def test_a_fold_never_sees_what_it_predicts() -> None:
    """Spoiling the held-out model's times changes its errors and not one prediction."""
    from dataclasses import replace

    import held_out

    rows = [row for row in measured_rows.serving_rows()[0] if row.refused is None][::12]
    models = sorted({row.model for row in rows})[:3]
    rows = [row for row in rows if row.model in models]
    spoiled = [
        replace(row, measure_tpot_s=row.measure_tpot_s * 3, measure_ttft_s=row.measure_ttft_s * 3)
        if row.model == models[0] else row for row in rows
    ]  # fmt: skip
    folds = [held_out.Folds(table, lambda row: row.model) for table in (rows, spoiled)]
    clean, other = (fold.held_out(models[0]) for fold in folds)
    assert np.array_equal(clean.tpot_s, other.tpot_s) and np.array_equal(clean.ttft_s, other.ttft_s)
    assert np.allclose(other.log_error() - clean.log_error(), -math.log(3))
    inner = folds[0].inner(models[0])
    assert {row.model for row in inner.rows} == set(models[1:])


@needs_table
def test_the_older_engine_is_found_from_its_steps() -> None:
    from dataclasses import replace

    import power_vs_measured as power

    found = power.points()[0][::6]
    truth = power.OlderEngine(1.3, 30e-6)
    made = [replace(point, measure_step_s=truth.step_s(point)) for point in found]
    fitted = power.fit_engine(made)
    assert fitted.factor == pytest.approx(1.3, abs=0.03) and fitted.sequence_s == pytest.approx(30e-6, abs=3e-6)
