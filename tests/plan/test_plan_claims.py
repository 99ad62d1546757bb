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


def priced(model: str, chip: str, precision: str = "fp8", users: int = 5000) -> Points:
    work = Workload(input_tokens=2000, output_tokens=500, users=users)
    return price_all(
        Question(model=named_model(model), pools=(parse_pool(chip, precision),), workload=work, goal=Goal())
    )


def cheapest(points: Points, tpot_s: float) -> int:
    return int(np.argmin(np.where(points["tpot_s"] <= tpot_s, points["usd_per_mtok"], np.inf)))


def test_ridge_batch_is_three_hundred_times_sparsity() -> None:
    """fp8 on an H100: 591 FLOP/B, one byte a weight, two FLOPs a weight; only N_total / N_active is left."""
    pool = parse_pool("h100", "fp8")
    for name, model in catalog_models().items():
        sparsity = shape_of(model.spec).sparsity
        assert ridge_batch_formula(model.spec, pool) == pytest.approx(300 * sparsity, rel=0.02), name


def test_an_output_token_costs_about_five_input_tokens_on_an_h100() -> None:
    """At 20 tokens a second, over dense and sparse models of four makers: about five in the middle, and no model far from it."""
    models = (("gpt-oss-120b", "mxfp4"), ("qwen3-235b-a22b", "fp8"), ("deepseek-v3", "fp8"), ("llama-3.1-70b", "fp8"))
    ratios = {}
    for model, precision in models:
        points = priced(model, "h100", precision)
        row = points.row(cheapest(points, 0.05))
        ratios[model] = row["usd_out_per_mtok"] / row["usd_in_per_mtok"]
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


@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3-235b-a22b"])
def test_two_and_a_half_times_the_speed_costs_five_to_eight_times(model: str) -> None:
    """On H100 nodes, from the usual 25 to 40 ms a token: dear where it starts from fast, cheap where it starts from slow."""
    frontier = cost_latency_frontier(priced(model, "h100"))

    def cost(tpot_s: float) -> float:
        return float(frontier["usd_per_mtok"][frontier["tpot_s"] <= tpot_s].min())

    slow = np.linspace(0.025, 0.040, 31)
    ratios = np.array([cost(tpot) / cost(tpot / 2.5) for tpot in slow]) ** -1
    assert ((ratios >= 5) & (ratios <= 8)).any(), dict(zip(slow, ratios, strict=True))
    assert ratios[0] > 5 and ratios[-1] < 8
    assert cost(0.040) < cost(0.016)


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
    points = priced("deepseek-v3", "gb200")
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
