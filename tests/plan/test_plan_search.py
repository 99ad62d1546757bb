"""The search: rows agree with the cost model asked one by one, the choice is the least that keeps the goal, and goals behave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgepoint.cost import StepBatch, memory_per_chip, step_cost, usable_bytes
from ridgepoint.cost.batch import Group
from ridgepoint.cost.serving import ClosedLoop, closed_loop
from ridgepoint.errors import ConfigError, PlanError
from ridgepoint.plan.choose import choose, keeps, upper
from ridgepoint.plan.explain import decode_layout, prefill_layout
from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.search import Plan, Question, plan, price_all
from ridgepoint.plan.workload import Goal, Workload

WORK = Workload(input_tokens=2000, output_tokens=500, users=600, prefix_hit_frac=0.25)


def question(
    model: str = "qwen3-30b-a3b",
    pools: tuple[str, ...] = ("h100:64",),
    *,
    work: Workload = WORK,
    goal: Goal | None = None,
    **more: bool,
) -> Question:
    found = tuple(parse_pool(name, "fp8") for name in pools)
    return Question(model=named_model(model), pools=found, workload=work, goal=goal or Goal(tpot_s=0.05), **more)


@pytest.fixture(scope="module")
def answered() -> Plan:
    return plan(question())


def test_rows_served_together_agree_with_the_closed_loop_asked_alone(answered: Plan) -> None:
    """The vectorised sweep and its scalar twin."""
    points, asked = answered.points, answered.question
    together = np.flatnonzero((points["kind"] == 0) & (points["timetable"] == 0))
    pool = asked.pools[0]
    for index in together[:: max(1, len(together) // 25)]:
        row = points.row(int(index))
        load = ClosedLoop(input_tokens=2000.0, output_tokens=500.0, concurrency=row["batch"], prefix_hit_frac=0.25)
        loop = closed_loop(
            asked.model.spec,
            pool.chip,
            decode_layout(row),
            pool.precision,
            load,
            pool.calibration,
            chunk_tokens=row["chunk"],
        )
        assert row["tpot_s"] == pytest.approx(float(loop.estimate_tpot_s), rel=1e-9)
        assert row["ttft_s"] >= float(loop.estimate_ttft_s) * (1 - 1e-9)  # arrivals are random: a queue comes on top
        users = row["batch"] * row["d_instances"]
        assert users == pytest.approx(600)
        assert row["requests_per_s"] == pytest.approx(users / (row["ttft_s"] + 500 * row["tpot_s"]), rel=1e-9)


def test_separate_pools_agree_with_the_step_law_asked_alone() -> None:
    asked = question("deepseek-v3", ("h200", "a100"), work=replace(WORK, users=2000))
    points = price_all(asked)
    pairs = np.flatnonzero(points["kind"] == 1)
    for index in pairs[:: max(1, len(pairs) // 15)]:
        row = points.row(int(index))
        d_pool, p_pool = asked.pools[int(row["d_pool"])], asked.pools[int(row["p_pool"])]
        decode = step_cost(
            asked.model.spec,
            d_pool.chip,
            decode_layout(row),
            d_pool.precision,
            StepBatch.decode(row["batch"], 2250.0),
            d_pool.calibration,
        )
        assert row["tpot_s"] == pytest.approx(float(decode.estimate_s), rel=1e-9)
        layout = prefill_layout(row)
        ranks = float(layout.dp_attention * layout.pp)
        steps = round(1500 / row["chunk"])
        chunk = Group(count=ranks, new=row["chunk"], cached=500 + 0.5 * (1500 - row["chunk"]), logits=1 / steps)
        prefill = step_cost(
            asked.model.spec, p_pool.chip, layout, p_pool.precision, StepBatch(groups=(chunk,)), p_pool.calibration
        )
        assert row["ttft_s"] >= steps * float(prefill.estimate_s)
        served = row["p_instances"] * ranks / (steps * float(prefill.estimate_s))
        assert row["requests_per_s"] <= served  # no pool is asked for more prompts than it can compute
        assert row["chips"] == row["d_chips"] + row["p_chips"]


def test_everything_priced_fits_in_memory(answered: Plan) -> None:
    points, asked = answered.points, answered.question
    rng = np.random.default_rng(1)
    for index in rng.choice(len(points), 30, replace=False):
        row = points.row(int(index))
        pool, layout = asked.pools[int(row["d_pool"])], decode_layout(row)
        parts = memory_per_chip(
            asked.model.spec, pool.precision, layout, sequences=row["batch"], context=2250.0, step_tokens=row["batch"]
        )
        assert sum(float(part) for part in parts.values()) <= usable_bytes(pool.chip, layout)


def test_the_choice_is_the_cheapest_that_keeps_the_goal(answered: Plan) -> None:
    points, goal, choice = answered.points, answered.question.goal, answered.choice
    assert choice.feasible
    fine = np.logical_and.reduce(list(keeps(points, goal).values()))
    assert choice.chosen["usd_per_mtok"] == points["usd_per_mtok"][fine].min()
    assert choice.num_feasible == fine.sum()
    assert choice.chosen["tpot_s"] * np.exp(1.2815 * choice.chosen["sigma"]) <= goal.tpot_s * 1.0001  # type: ignore[operator]
    assert choice.runner_up is not None and choice.runner_up["usd_per_mtok"] >= choice.chosen["usd_per_mtok"]
    names = ("kind", "d_tp", "d_dp", "d_ep", "d_pp")
    assert any(choice.runner_up[name] != choice.chosen[name] for name in names)


def test_no_row_of_the_frontier_is_beaten(answered: Plan) -> None:
    frontier = answered.choice.frontier
    order = np.argsort(frontier["tpot_s"])
    assert (np.diff(frontier["usd_per_mtok"][order]) < 0).all()


def test_tighter_limits_never_cost_less(answered: Plan) -> None:
    costs = []
    for limit in (0.02, 0.03, 0.05, 0.1, 0.4):
        choice = choose(answered.points, Goal(tpot_s=limit))
        costs.append(choice.chosen["usd_per_mtok"] if choice.feasible else np.inf)
    assert costs == sorted(costs, reverse=True)
    sure, unsure = (
        choose(answered.points, Goal(tpot_s=0.03, confidence=c)).chosen["usd_per_mtok"] for c in (0.95, 0.5)
    )
    assert sure >= unsure


def test_an_impossible_speed_returns_the_closest_and_the_limit_that_fails(answered: Plan) -> None:
    choice = choose(answered.points, Goal(tpot_s=1e-5, usd_per_mtok=1e3))
    assert not choice.feasible
    (failure,) = choice.failures
    assert (failure.metric, failure.alone) == ("tpot_s", True)
    assert failure.best == pytest.approx(upper(answered.points, "tpot_s", 0.9).min())


def test_limits_that_exclude_each_other_are_told_apart(answered: Plan) -> None:
    points = answered.points
    fast, cheap = upper(points, "tpot_s", 0.9).min(), upper(points, "usd_per_mtok", 0.9).min()
    choice = choose(points, Goal(tpot_s=fast * 1.01, usd_per_mtok=cheap * 1.01))
    assert not choice.feasible and choice.failures
    assert not any(failure.alone for failure in choice.failures)


def test_too_few_chips_for_the_load_is_a_failed_limit_not_an_error() -> None:
    asked = plan(question("deepseek-v3", ("h200:8",), work=replace(WORK, users=20_000), goal=Goal(tpot_s=0.05)))
    assert not asked.choice.feasible
    assert "supply" in {failure.metric for failure in asked.choice.failures}


def test_weights_that_fit_nowhere_are_an_error_with_a_count() -> None:
    with pytest.raises(PlanError, match="at least 5 chips"):
        plan(question("deepseek-v3", ("h200:4",)))


def test_contexts_beyond_the_model_and_missing_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens of context"):
        question(work=Workload(input_tokens=500_000))
    with pytest.raises(ConfigError, match="may prefill"):
        Question(
            model=named_model("qwen3-30b-a3b"), pools=(parse_pool("h100", "fp8", "decode"),), workload=WORK, goal=Goal()
        )


def test_unknown_links_are_not_used() -> None:
    pool = replace(
        parse_pool("h100", "fp8"), chip=replace(parse_pool("h100", "fp8").chip, spec_scaleout_bytes_per_s=None)
    )
    points = price_all(replace(question(), pools=(pool,)))
    assert (points["d_chips"] / points["d_instances"] <= 8).all()
    assert (points["kind"] == 0).all()  # nothing to hand KV over with


@pytest.mark.parametrize("disaggregate", [False, True])
def test_a_given_rate_is_carried_by_whole_instances(disaggregate: bool) -> None:
    rate = 37.0
    points = price_all(question(work=replace(WORK, users=None, requests_per_s=rate), disaggregate=disaggregate))
    assert np.allclose(points["requests_per_s"], rate)
    kind = points["kind"] == (1 if disaggregate else 0)
    residence = (0 if disaggregate else points["ttft_s"]) + 500 * points["tpot_s"]
    held = (points["d_instances"] * points["batch"] / residence)[kind]
    # Little's law, found on straight lines between 24 points of a curve: within a per cent, five at worst.
    assert np.median(np.abs(held / rate - 1)) < 0.01
    assert np.quantile(np.abs(held / rate - 1), 0.99) < 0.05
    assert (points["d_instances"] % 1 == 0).all() and (points["p_instances"] % 1 == 0).all()


def test_a_rate_and_the_users_who_make_it_agree() -> None:
    """Little's law: the users in flight of one answer, asked again as a rate, cost about the same."""
    by_users = plan(question(disaggregate=False)).choice.chosen
    work = replace(WORK, users=None, requests_per_s=by_users["requests_per_s"])
    by_rate = plan(question(work=work, disaggregate=False)).choice.chosen
    assert by_rate["usd_per_mtok"] == pytest.approx(by_users["usd_per_mtok"], rel=0.25)


def test_users_who_pause_need_fewer_chips() -> None:
    busy, calm = (
        plan(question(work=replace(WORK, users=5000, think_time_s=pause), pools=("h100",))).choice.chosen
        for pause in (0.0, 60.0)
    )
    assert calm["chips"] < busy["chips"]
    assert calm["requests_per_s"] < busy["requests_per_s"]


def test_speculation_speeds_a_memory_bound_decode() -> None:
    goal = Goal(minimise="tpot", tpot_s=1.0, confidence=0.5)
    plain = plan(question(goal=goal, disaggregate=False)).choice.chosen["tpot_s"]
    drafted = plan(
        question(work=replace(WORK, draft_tokens=3, acceptance=0.8), goal=goal, disaggregate=False)
    ).choice.chosen["tpot_s"]
    assert 1.5 < plain / drafted < 2.952  # less than the tokens per step: verifying is not free


def test_cached_prefixes_and_shared_prompts_make_input_cheaper() -> None:
    def cost(**changes: float) -> float:
        return plan(question(work=replace(WORK, **changes), goal=Goal(), disaggregate=False)).choice.chosen[
            "usd_per_mtok"
        ]  # type: ignore[arg-type]

    assert cost(prefix_hit_frac=0.9) < cost(prefix_hit_frac=0.0)
    assert cost(rollouts=8) < cost(rollouts=1)


def test_disaggregated_counts_one_stock_of_chips() -> None:
    points = price_all(question(pools=("h100:64",)))
    both = points["kind"] == 1
    assert np.allclose(points["supply"][both], points["chips"][both] / 64)
