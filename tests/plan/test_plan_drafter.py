"""A drafter pays its way: passes before every verification, weights and cache beside the model's, prompts of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ridgepoint.cost import SERVING, Layout, Precision, StepBatch, kv_bytes_per_chip, shape_of, step_cost
from ridgepoint.cost.drafting import (
    Drafter,
    draft_kv_bytes_per_chip,
    draft_step,
    draft_weight_bytes_per_chip,
    own_module,
)
from ridgepoint.errors import ConfigError
from ridgepoint.plan.named import named_drafter, named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.report import report
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.sweep import lay_out
from ridgepoint.plan.workload import Goal, Workload

BIG, SMALL = named_model("qwen3-32b"), named_model("qwen3-8b")
H200 = parse_pool("h200:8", "fp8", share_units=True)
WORK = Workload(input_tokens=1000, output_tokens=500, users=16, draft_tokens=3, acceptance=0.75)


def ask(drafter: Drafter | None, work: Workload = WORK, **changes: Any) -> Plan:
    goal = Goal(minimise="tpot", **changes)
    return plan(Question(model=BIG, pools=(H200,), workload=work, goal=goal, disaggregate=False, drafter=drafter))


def test_passes_are_steps_of_the_drafter_on_one_rank() -> None:
    drafter, chip, precision = Drafter(name="small", spec=SMALL.spec), H200.chip, Precision.named("fp8")
    layout = Layout(tp=2, dp_attention=4)
    cost = draft_step(drafter, chip, layout, precision, SERVING, sequences=32.0, context=800.0, draft_tokens=3.0)
    one = step_cost(
        SMALL.spec, chip, Layout(tp=2), precision, StepBatch.decode(8.0, 800.0), SERVING.adjusted(step_overhead_s=0.0)
    )
    assert cost.estimate_s == pytest.approx(3 * one.estimate_s)
    assert cost.estimate_j == pytest.approx(3 * 4 * one.estimate_j)
    piped = draft_step(
        drafter, chip, Layout(tp=2, pp=2), precision, SERVING, sequences=16.0, context=800.0, draft_tokens=3.0
    )
    assert piped.estimate_s == pytest.approx(2 * cost.estimate_s)  # one stage drafts for both micro-batches
    assert piped.estimate_j > cost.estimate_j / 4 * 2  # and the other's chips wait


def test_memory_of_a_drafter() -> None:
    drafter, precision, layout = Drafter(name="small", spec=SMALL.spec), Precision.named("fp8"), Layout(tp=4, pp=2)
    weights = draft_weight_bytes_per_chip(drafter, precision, layout)
    assert weights == pytest.approx((8.19e9 + 1.24e9) / 4, rel=0.02)  # fp8, embeddings and head in bf16
    kv = draft_kv_bytes_per_chip(drafter, precision, layout, 64.0, 1000.0)
    assert kv == kv_bytes_per_chip(SMALL.spec, precision, Layout(tp=4), 64.0, 1000.0)
    module = own_module("x", BIG.spec)
    layer = shape_of(module.spec).kinds[0].total_params
    assert draft_weight_bytes_per_chip(module, precision, layout) == pytest.approx(layer / 4, rel=0.01)


def test_room_shrinks_by_weights_and_cache() -> None:
    sides = [
        lay_out(BIG.spec, H200, WORK, Goal(), role="together", drafter=drafter)
        for drafter in (None, Drafter(name="small", spec=SMALL.spec))
    ]
    one_chip = [float(side.room[(side.degrees.chips == 1)][0]) for side in sides]
    assert one_chip[1] < 0.7 * one_chip[0]


def test_costs_grow_with_the_drafter_and_a_small_one_pays() -> None:
    free, module, model = (
        ask(drafter) for drafter in (None, own_module("x", BIG.spec), named_drafter("qwen3-8b", BIG))
    )
    plain = ask(None, Workload(input_tokens=1000, output_tokens=500, users=16))
    tpot = [found.choice.chosen["tpot_s"] for found in (free, module, model)]
    assert tpot[0] < tpot[1] < tpot[2]
    assert tpot[1] < plain.choice.chosen["tpot_s"]  # a layer of 64 is cheap beside 2.7 tokens a step
    assert free.choice.chosen["draft_s"] == 0 < module.choice.chosen["draft_s"] < model.choice.chosen["draft_s"]
    for found, cheaper in ((module, free), (model, module)):
        assert np.nanmin(found.points["joules_per_token"]) > np.nanmin(cheaper.points["joules_per_token"])


def test_separate_pools_draft_too() -> None:
    def decode(drafter: Drafter | None) -> dict[str, float]:
        pools = (parse_pool("h200:8", "fp8"), parse_pool("h100:8", "fp8", "prefill"))
        asked = Question(model=BIG, pools=pools, workload=WORK, goal=Goal(minimise="tpot"), drafter=drafter)
        points = plan(asked).points
        rows = points.pick(points["kind"] == 1)
        return rows.row(int(np.argmin(rows["tpot_s"])))

    without, with_one = decode(None), decode(named_drafter("qwen3-8b", BIG))
    assert with_one["step_s"] > without["step_s"] and with_one["draft_s"] > 0
    assert with_one["ttft_s"] > 0 and with_one["handoff_s"] > 0


def test_the_output_names_the_drafter() -> None:
    data = report(ask(named_drafter("qwen3-8b", BIG)))
    assert data["question"]["drafter"]["name"] == "qwen3-8b" and data["question"]["drafter"]["total_params"] > 8e9
    assert data["choice"]["figures"]["draft_s"]["middle"] > 0
    assert data["explain"]["term_s"]["drafter"] > 0 and data["explain"]["memory_bytes"]["drafter"] > 1e8
    assert any("qwen3-8b drafts (8.19 G parameters)" in line for line in data["assumptions"])
    free = report(ask(None))
    assert free["question"]["drafter"] == {"name": "ngram", "total_params": 0}
    assert "draft_s" not in free["choice"]["figures"]
    assert any("looked up in the text" in line for line in free["assumptions"])


def test_what_cannot_draft() -> None:
    with pytest.raises(ConfigError, match="vocabularies of 128,256 and 151,936"):
        named_drafter("llama-3.1-8b", BIG)
    with pytest.raises(ConfigError, match="without an acceptance"):
        ask(own_module("x", BIG.spec), Workload(users=1))
    assert named_drafter("ngram", BIG) is None


def choose_length(acceptance: float, drafter: Drafter | None, users: int = 16) -> Plan:
    work = Workload(input_tokens=1000, output_tokens=500, users=users, draft_tokens=8, acceptance=acceptance)
    asked = Question(
        model=BIG, pools=(H200,), workload=work, goal=Goal(minimise="tpot"), disaggregate=False, drafter=drafter, draft_lengths=(0, 1, 2, 4, 8),
    )  # fmt: skip
    return plan(asked)


def test_the_draft_length_is_chosen_and_the_best_of_each_kept() -> None:
    """The chosen length is the best of plans that fix it; a likelier draft is worth a longer one."""
    drafter = named_drafter("qwen3-8b", BIG)
    likely, unlikely = choose_length(0.85, drafter), choose_length(0.2, drafter)
    lengths = [int(found.choice.chosen["draft"]) for found in (likely, unlikely)]
    assert lengths[0] > lengths[1] == 0
    assert [int(row["draft"]) for row in likely.drafts] == [0, 1, 2, 4, 8]
    assert likely.choice.chosen["tpot_s"] == min(row["tpot_s"] for row in likely.drafts)
    fixed = ask(
        drafter, Workload(input_tokens=1000, output_tokens=500, users=16, draft_tokens=lengths[0], acceptance=0.85)
    )
    assert fixed.choice.chosen == likely.choice.chosen
    assert likely.question.workload.draft_tokens == lengths[0] and likely.question.drafter is not None
    assert unlikely.question.drafter is None and report(unlikely)["explain"]["term_s"].get("drafter") is None
    assert report(likely)["question"]["searched"]["draft_tokens"] == [0, 1, 2, 4, 8]
    assert [item["serve"]["draft_tokens"] for item in report(likely)["drafts"]] == [0, 1, 2, 4, 8]
