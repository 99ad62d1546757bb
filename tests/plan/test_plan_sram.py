"""Layouts that lie in on-chip SRAM: offered where the facts are known, chosen when only they keep the goal, and never over-full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerator, accelerators
from ridgepoint.cost import StepBatch, filled_frac, memory_per_chip, step_cost
from ridgepoint.cost.transfer import COMPILED_OVERHEADS, calibration_for
from ridgepoint.plan.explain import decode_layout
from ridgepoint.plan.layouts import IN_SRAM, MAIN, RESIDENCES, WEIGHTS_IN_SRAM, enumerate_layouts, residences
from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import Pool, parse_pool
from ridgepoint.plan.report import report
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.workload import Goal, Workload

MODEL = named_model("olmoe-1b-7b")


def with_power(pool: Pool, tdp_w: float) -> Pool:
    return replace(pool, chip=replace(pool.chip, spec_tdp_w=tdp_w))


@pytest.fixture(scope="module")
def pool() -> Pool:
    return with_power(parse_pool("tpu-v5e:64", "int4"), 200.0)


@pytest.fixture(scope="module")
def hurried(pool: Pool) -> Plan:
    return ask(pool, 1e-3)


def ask(pool: Pool, tpot_s: float) -> Plan:
    work = Workload(input_tokens=500, output_tokens=200, users=16)
    goal = Goal(tpot_s=tpot_s)
    return plan(Question(model=MODEL, pools=(pool,), workload=work, goal=goal, disaggregate=False))


def test_what_each_chip_offers() -> None:
    assert residences(accelerator("tpu-v5e")) == RESIDENCES == (MAIN, IN_SRAM, WEIGHTS_IN_SRAM)
    assert residences(accelerator("groq-lpu1")) == (IN_SRAM,)  # its memory is its SRAM
    assert residences(accelerator("h100")) == (MAIN,)  # 33 MB of it, at a speed nobody has published


def test_more_ways_of_tensor_parallelism_are_worth_it_in_sram() -> None:
    chip, spec = accelerator("tpu-v5e"), named_model("llama-3.1-70b").spec
    assert enumerate_layouts(spec, chip, 64).tp.max() == 16
    assert enumerate_layouts(spec, chip, 64, IN_SRAM).tp.max() == 64


def test_sram_is_chosen_when_only_it_is_fast_enough(pool: Pool, hurried: Plan) -> None:
    fast, slow = hurried.choice.chosen, ask(pool, 20e-3).choice.chosen
    assert hurried.choice.feasible and fast["d_memory"] != MAIN.code and 16 <= fast["chips"] <= 64
    assert slow["d_memory"] == MAIN.code and slow["usd_per_mtok"] < fast["usd_per_mtok"]
    points = hurried.points
    main = (points["d_memory"] == MAIN.code) & (points["supply"] <= 1)
    assert points["tpot_s"][main].min() > fast["tpot_s"]


def test_no_row_overfills_either_memory(pool: Pool, hurried: Plan) -> None:
    points, work = hurried.points, hurried.question.workload
    for index in range(0, len(points), max(1, len(points) // 60)):
        row = points.row(index)
        layout = decode_layout(row)
        parts = memory_per_chip(
            MODEL.spec, pool.precision, layout, sequences=row["batch"], context=work.decode_context, step_tokens=1.0
        )
        assert filled_frac(parts, pool.chip, layout) <= 1.0
        if layout.split_memory:
            assert (parts["weights"] + parts["activations"]) <= 0.92 * pool.chip.need("spec_sram_bytes", "")


def test_the_output_names_the_memory(hurried: Plan) -> None:
    data = report(hurried)
    choice = data["choice"]
    assert "in SRAM" in choice["name"]
    assert choice["decode"]["sram"] is choice["serve"]["sram"] is True
    assert choice["decode"]["kv_in_sram"] is ("weights and KV in SRAM" in choice["name"])
    assert any(item["resource"] == "SRAM bandwidth" for item in data["explain"]["elasticities"])
    assert {item["decode"]["sram"] for item in data["alternatives"]} >= {True}


def test_energy_and_dollars_follow(pool: Pool, hurried: Plan) -> None:
    """A step's bytes are charged at SRAM's joules, and every one of the many chips is paid for."""
    row, layout = hurried.choice.chosen, decode_layout(hurried.choice.chosen)
    assert row["usd_per_hour"] == pytest.approx(row["chips"] * 1.2)
    batch = StepBatch.decode(row["batch"], float(hurried.question.workload.decode_context))
    inside = step_cost(MODEL.spec, pool.chip, layout, pool.precision, batch, pool.calibration)
    outside = step_cost(MODEL.spec, pool.chip, replace(layout, sram=False), pool.precision, batch, pool.calibration)
    assert inside.estimate_s < outside.estimate_s and inside.estimate_j < outside.estimate_j


def test_a_chip_without_other_memory_is_planned_in_sram() -> None:
    pool = parse_pool("groq-lpu1", "int8", rents={"groq-lpu1": 0.5})
    pool = replace(pool, chip=replace(pool.chip, spec_scaleup_bytes_per_s=100e9))  # nobody has published it
    work = Workload(input_tokens=200, output_tokens=100, users=2)
    found = plan(Question(model=MODEL, pools=(pool,), workload=work, goal=Goal(), disaggregate=False))
    assert found.choice.chosen["d_memory"] == IN_SRAM.code and found.choice.chosen["chips"] > 30


def test_unknown_sram_speed_is_said() -> None:
    pool = parse_pool("h200:1", "mxfp4")
    found = plan(
        Question(
            model=named_model("gpt-oss-20b"),
            pools=(pool,),
            workload=Workload(users=1),
            goal=Goal(),
            disaggregate=False,
        )
    )
    assert any("speed of its SRAM is unknown" in line for line in report(found)["assumptions"])


@pytest.mark.parametrize("chip", [c.id for c in accelerators().values() if c.kind in ("tpu", "sram")])
def test_overheads_of_compiled_steps_are_estimates_with_ends_and_reasons(chip: str) -> None:
    """Each overhead the chip's constants carry, and an interval as wide as the least known of them."""
    constants = calibration_for(accelerator(chip), "serving")
    assert constants.provenance.startswith(f"estimate_: {chip} runs a step as one compiled program")
    for name, overhead in COMPILED_OVERHEADS.items():
        assert getattr(constants, name) == overhead.middle_s
        assert overhead.low_s < overhead.middle_s < overhead.high_s and overhead.why in constants.provenance
        width = np.exp(1.2815 * constants.uncertainty)
        assert width > overhead.high_s / overhead.middle_s and width > overhead.middle_s / overhead.low_s
    assert calibration_for(accelerator(chip), "roofline").uncertainty == 0.0


def test_a_plan_on_compiled_steps_says_that_their_overheads_are_estimates(hurried: Plan) -> None:
    data = report(hurried)
    (line,) = [line for line in data["assumptions"] if "tpu-v5e by calibration compiled-step" in line]
    assert "estimate_" in line and "0.5 us (0.25 to 1:" in line
    step = data["choice"]["figures"]["tpot_s"]
    assert step["high"] / step["middle"] > 2 and step["provenance"] == "estimate"
