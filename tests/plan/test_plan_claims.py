"""The project's seed claims that the planner must bear out from first principles."""

from __future__ import annotations

import numpy as np
import pytest

from ridgepoint.catalog.models import catalog_models, model_spec
from ridgepoint.cost import shape_of
from ridgepoint.cost.layout import Layout
from ridgepoint.plan.boundary import pipeline_kv, rack_boundary
from ridgepoint.plan.choose import cost_latency_frontier
from ridgepoint.plan.explain import ridge_batch_formula
from ridgepoint.plan.named import named_model
from ridgepoint.plan.points import Points
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.search import Question, plan, price_all
from ridgepoint.plan.workload import Goal, Workload


def priced(model: str, chip: str, precision: str = "fp8", users: int = 5000, engine: str = "serving") -> Points:
    work = Workload(input_tokens=2000, output_tokens=500, users=users)
    pool = parse_pool(chip, precision, engine=engine)
    return price_all(Question(model=named_model(model), pools=(pool,), workload=work, goal=Goal()))


def cheapest(points: Points, tpot_s: float) -> int:
    return int(np.argmin(np.where(points["tpot_s"] <= tpot_s, points["usd_per_mtok"], np.inf)))


def test_ridge_batch_is_three_hundred_times_sparsity() -> None:
    """fp8 on an H100: 591 FLOP/B, one byte a weight, two FLOPs a weight; only N_total / N_active is left."""
    pool = parse_pool("h100", "fp8")
    for name, model in catalog_models().items():
        sparsity = shape_of(model.spec).sparsity
        assert ridge_batch_formula(model.spec, pool) == pytest.approx(300 * sparsity, rel=0.02), name


def test_an_output_token_costs_about_five_input_tokens_on_an_h100() -> None:
    """At 20 to 40 tokens a second, over dense and sparse models of four makers: about five in the middle, and no model far from it.

    At a single speed it hangs on how units of eight chips round, of which these users take 5 to 18 at 20 tokens a second."""
    models = (("gpt-oss-120b", "mxfp4"), ("qwen3-235b-a22b", "fp8"), ("deepseek-v3", "fp8"), ("llama-3.1-70b", "fp8"))
    ratios = {}
    for model, precision in models:
        points = priced(model, "h100", precision)
        rows = [points.row(cheapest(points, 1.0 / speed)) for speed in (20.0, 25.0, 30.0, 35.0, 40.0)]
        ratios[model] = np.exp(np.mean([np.log(row["usd_out_per_mtok"] / row["usd_in_per_mtok"]) for row in rows]))
    assert all(2.5 < ratio < 8 for ratio in ratios.values()), ratios
    assert 3.75 < np.exp(np.mean(np.log(list(ratios.values())))) < 6.25, ratios


def test_who_just_missed_a_step_waits_two_intervals() -> None:
    """In every row that was priced, together or apart, on a timetable or not; and a limit on that wait is half an interval's."""
    points = priced("gpt-oss-120b", "h200", "mxfp4", users=200)
    assert np.allclose(points["worst_wait_s"], 2 * points["interval_s"])
    assert set(points["timetable"]) == {0.0, 1.0}
    work = Workload(input_tokens=2000, output_tokens=500, users=200)
    pool = parse_pool("h200", "mxfp4")
    asked = Question(model=named_model("gpt-oss-120b"), pools=(pool,), workload=work, goal=Goal(wait_s=0.03))
    assert plan(asked).choice.chosen["interval_s"] <= 0.015


FASTER = 2.5  # times the speed, which hosts sell at six times the price
DEPLOYMENTS = [
    (model, precision, chip)
    for model, precision in (("deepseek-v3", "fp8"), ("qwen3-235b-a22b", "fp8"), ("minimax-m2.5", "fp8"), ("gpt-oss-120b", "mxfp4"))
    for chip in ("h100", "h200", "b200", "gb200")
]  # fmt: skip


def frontier(model: str, precision: str, chip: str, engine: str = "serving") -> dict[str, np.ndarray]:
    return cost_latency_frontier(priced(model, chip, precision, engine=engine))


def price_of_speed(found: dict[str, np.ndarray], tpot_s: float) -> float:
    """What 2.5 times the speed costs, from `tpot_s` a token."""

    def cost(limit_s: float) -> float:
        return float(found["usd_per_mtok"][found["tpot_s"] <= limit_s].min())

    return cost(tpot_s / FASTER) / cost(tpot_s)


@pytest.fixture(scope="module")
def frontiers() -> dict[tuple[str, ...], dict[str, np.ndarray]]:
    return {deployment: frontier(*deployment) for deployment in DEPLOYMENTS}


def at_multiple(found: dict[str, np.ndarray], of_least: float) -> float:
    return price_of_speed(found, of_least * float(found["tpot_s"].min()))


@pytest.mark.parametrize("of_least", [3.4, 3.5, 3.6])
def test_two_and_a_half_times_the_speed_costs_five_to_eight_times(frontiers, of_least: float) -> None:  # type: ignore[no-untyped-def]
    """Where the ordinary tier takes about three and a half times the least time a token that model, chips and engine allow, so that the fast
    one comes within 1.4 of it: the middle of 16 deployments (one deployment's price moves in steps of its layouts)."""
    prices = [at_multiple(found, of_least) for found in frontiers.values()]
    assert 5 < np.exp(np.mean(np.log(prices))) < 8, dict(zip(frontiers, prices, strict=True))


def test_speed_is_dearer_nearer_the_least_time_and_cheaper_farther_from_it(frontiers) -> None:  # type: ignore[no-untyped-def]
    """So everywhere, and on the way from one to the other every deployment passes the five to eight."""
    for deployment, found in frontiers.items():
        assert at_multiple(found, 2.6) > 8, deployment
        assert at_multiple(found, 5.5) < 5, deployment
        between = [at_multiple(found, multiple) for multiple in np.linspace(2.6, 5.5, 59)]
        assert any(4.5 < price < 8.5 for price in between), (deployment, between)


def test_physics_alone_sells_speed_cheaply() -> None:
    """On the bare roofline more chips buy speed almost at par from 20 to 40 ms a token: overheads make the fast tier dear."""
    found = frontier("deepseek-v3", "fp8", "gb200", "roofline")
    assert all(price_of_speed(found, tpot_s) < 2 for tpot_s in (0.020, 0.030, 0.040))


def test_experts_stay_inside_the_rack_and_pipelines_cross_it() -> None:
    """At the ridge batch: all-to-all over scale-out costs many times what a pipeline's hop does, and the pipeline wins."""
    for model in ("deepseek-v3", "minimax-m2.5"):
        pool = parse_pool("gb200", "fp8")
        crossing = rack_boundary(
            model_spec(model), pool, batch=ridge_batch_formula(model_spec(model), pool), context=4000.0
        )
        assert crossing is not None
        assert crossing.ep_link_s > 4 * crossing.pp_link_s
        assert crossing.winner == "PP"


def test_the_planner_itself_keeps_experts_inside() -> None:
    points = priced("deepseek-v3", "gb200", users=50_000)  # many racks, so that whole ones do not decide
    assert points["d_ep"].max() > 72  # experts across racks were priced too
    row = points.row(cheapest(points, 0.05))
    assert 8 < row["d_ep"] <= 72  # more of the rack than a node has, and no more than the rack


@pytest.mark.parametrize(
    "layout", [Layout(dp_attention=8, ep=8), Layout(tp=8, ep=1), Layout(tp=2, dp_attention=4, ep=8)]
)
def test_more_pipeline_stages_do_not_shrink_kv(layout: Layout) -> None:
    rows = pipeline_kv(model_spec("deepseek-v3"), parse_pool("h200", "fp8"), layout, stage_batch=64.0, context=4000.0)
    assert [row.pp for row in rows] == [1, 2, 4, 8]
    assert len({round(row.kv_bytes_per_chip) for row in rows}) == 1
    weights = [row.weight_bytes_per_chip for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] / weights[3] > 6
