"""Explanations add up: shares to one, terms to the step, elasticities to what the cost model does when the resource grows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ridgepoint.cost import ROOFS, Layout, StepBatch, step_cost
from ridgepoint.errors import PlanError
from ridgepoint.plan.boundary import rack_boundary
from ridgepoint.plan.explain import decode_layout, explain
from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.retire import ASSUMPTIONS, best_prefill, retirement
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.workload import Goal, Workload


@pytest.fixture(scope="module")
def answered() -> Plan:
    pools = (parse_pool("h200:64", "fp8"), parse_pool("v100:512", "fp8", "prefill", rents={"v100": 0.14}))
    work = Workload(input_tokens=2000, output_tokens=400, users=1500)
    return plan(Question(model=named_model("deepseek-v3"), pools=pools, workload=work, goal=Goal(tpot_s=0.06)))


def test_roofs_and_terms_add_up(answered: Plan) -> None:
    row = answered.choice.chosen
    found = explain(answered.question, row)
    assert sum(found.roof_frac.values()) == pytest.approx(1.0)
    pool = answered.question.pools[int(row["d_pool"])]
    step = step_cost(
        answered.question.model.spec,
        pool.chip,
        decode_layout(row),
        pool.precision,
        StepBatch.decode(row["batch"], 2200.0),
        pool.calibration,
    )
    assert sum(found.term_s.values()) == pytest.approx(float(step.estimate_s))
    assert found.binds == max(found.roof_frac, key=lambda name: found.roof_frac[name])
    for point in found.curve:
        assert sum(point.roof_s.values()) == pytest.approx(point.estimate_step_s, rel=1e-6)


def test_cost_falls_with_batch_and_compute_takes_over_at_the_ridge(answered: Plan) -> None:
    found = explain(answered.question, answered.choice.chosen)
    cost = [point.estimate_usd_per_mtok for point in found.curve]
    assert all(b < a * 1.02 for a, b in pairwise(cost))
    assert found.ridge_batch is not None
    for point in found.curve:
        weights_lead = point.roof_s["weights"] > point.roof_s["compute"]
        if point.batch < found.ridge_batch / 1.3:
            assert weights_lead
        if point.batch > found.ridge_batch * 1.3:
            assert not weights_lead
    fits = [point.fits for point in found.curve]
    assert fits == sorted(fits, reverse=True)


def test_elasticities_are_what_a_better_chip_does(answered: Plan) -> None:
    row, asked = answered.choice.chosen, answered.question
    found = {item.resource: item.value for item in explain(asked, row).elasticities}
    pool = asked.pools[int(row["d_pool"])]
    faster = replace(pool.chip, spec_memory_bytes_per_s=1.1 * (pool.chip.spec_memory_bytes_per_s or 0))
    batch = StepBatch.decode(row["batch"], 2200.0)
    before, after = (
        float(step_cost(asked.model.spec, chip, decode_layout(row), pool.precision, batch, pool.calibration).estimate_s)
        for chip in (pool.chip, faster)
    )
    assert found["memory bandwidth"] == pytest.approx(np.log(before / after) / np.log(1.1))
    assert all(-1e-9 <= value <= 1 for value in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_operating_points_lie_under_their_roofs(answered: Plan) -> None:
    for point in explain(answered.question, answered.choice.chosen).roofline:
        assert 0 < point.estimate_flops_per_s <= point.spec_roof_flops_per_s <= point.spec_peak_flops_per_s


def test_prefill_sits_right_of_decode_on_the_roofline(answered: Plan) -> None:
    decode, prefill = explain(answered.question, answered.choice.chosen).roofline
    assert prefill.flop_per_byte > 1.5 * decode.flop_per_byte  # on unlike chips, so each against its own ridge as well
    assert prefill.spec_roof_flops_per_s == prefill.spec_peak_flops_per_s
    assert decode.spec_roof_flops_per_s < 0.5 * decode.spec_peak_flops_per_s


def test_rack_boundary_needs_experts_and_a_wire() -> None:
    dense = rack_boundary(named_model("llama-3.1-70b").spec, parse_pool("h200", "fp8"), batch=64.0, context=1000.0)
    assert dense is None
    pool = parse_pool("h200", "fp8")
    cut = replace(pool, chip=replace(pool.chip, spec_scaleout_bytes_per_s=None))
    assert rack_boundary(named_model("deepseek-v3").spec, cut, batch=64.0, context=1000.0) is None


def test_an_old_chip_lasts_as_long_as_its_power_is_cheap(answered: Plan) -> None:
    new, old = answered.question.pools
    found = retirement(answered.question, old, new)
    assert found.old.launch_year == 2017
    assert found.old.tokens_per_s < found.new.tokens_per_s
    assert 0 < found.years.low < found.years.middle < found.years.high
    assert {item.name for item in found.years.assumptions} >= {item.name for item in ASSUMPTIONS}
    # The formula at the middles: the year at which growth has eaten the ratio.
    ratio = found.new_usd_per_mtok.middle / found.old_usd_per_mtok.middle
    assert found.years.middle == pytest.approx(np.log(ratio) / np.log(np.sqrt(1.2 * 1.5)), rel=0.15)
    dear = replace(new, chip=new.chip.with_rent(0.05))
    assert retirement(answered.question, old, dear).years.high < found.years.low


def test_an_old_chip_too_small_for_the_model_says_so(answered: Plan) -> None:
    with pytest.raises(PlanError, match="does not fit"):
        best_prefill(answered.question, parse_pool("t4:4", "fp8", "prefill"))


def test_roofs_are_the_cost_models(answered: Plan) -> None:
    assert set(explain(answered.question, answered.choice.chosen).roof_frac) == set(ROOFS)
    assert isinstance(decode_layout(answered.choice.chosen), Layout)
