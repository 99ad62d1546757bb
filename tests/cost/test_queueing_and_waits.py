"""Waits: the timetable, Little's law, refusals near saturation, and how a busy server's TTFT and TPOT move."""

from __future__ import annotations

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import Layout, Precision, StepBatch, step_cost
from ridgepoint.cost.calibration import calibration
from ridgepoint.cost.drafting import Drafter, own_module
from ridgepoint.cost.queueing import mean_wait_s, mg1_wait_s, open_loop, worst_wait_s
from ridgepoint.cost.serving import ClosedLoop, ServingCost, closed_loop, price_serving, serving_amounts
from ridgepoint.cost.workload import Workload
from ridgepoint.errors import ConfigError, PlanError

SERVING = calibration("serving")
SPEC, CHIP, PRECISION = model_spec("gpt-oss-120b"), accelerator("h200"), Precision.named("mxfp4")
ASK = Workload(input_tokens=2000.0, output_tokens=500.0)


def loop(**changes: float) -> ClosedLoop:
    return ClosedLoop(**{"input_tokens": 1024.0, "output_tokens": 1024.0, "concurrency": 16.0, **changes})


def test_timetable_waits_two_intervals_at_worst() -> None:
    assert worst_wait_s(0.020) == pytest.approx(0.040)
    arrivals = np.linspace(0, 0.020, 10_001)[1:]
    waits = (0.020 - arrivals) + 0.020  # board at the next departure, arrive one interval later
    assert waits.max() < worst_wait_s(0.020) and waits.mean() == pytest.approx(mean_wait_s(0.020), rel=1e-3)


def test_pollaczek_khinchine_and_its_refusal() -> None:
    assert mg1_wait_s(0.5, 1.0, 1.0) == pytest.approx(1.0)  # M/M/1
    assert mg1_wait_s(0.5, 1.0, 0.0) == pytest.approx(0.5)  # M/D/1
    with pytest.raises(PlanError, match="saturated: prompts would keep 95% of the engine busy"):
        mg1_wait_s(0.95, 1.0, 1.0)


def test_open_loop_obeys_littles_law_and_orders_percentiles() -> None:
    quiet = open_loop(SPEC, CHIP, Layout(), PRECISION, ASK, SERVING, requests_per_s=0.5)
    busy = open_loop(SPEC, CHIP, Layout(), PRECISION, ASK, SERVING, requests_per_s=3.0)
    for state, rate in ((quiet, 0.5), (busy, 3.0)):
        assert state.running == pytest.approx(rate * 500 * state.estimate_tpot_s, rel=0.02)
        ordered = [state.ttft_percentile_s(p) for p in (50, 90, 99, 99.9)]
        assert ordered == sorted(ordered)
    assert busy.estimate_tpot_s > quiet.estimate_tpot_s and busy.estimate_ttft_mean_s > quiet.estimate_ttft_mean_s


def test_near_saturation_the_answer_is_a_reason() -> None:
    with pytest.raises(PlanError, match="saturated"):
        open_loop(SPEC, CHIP, Layout(), PRECISION, ASK, SERVING, requests_per_s=500.0)
    with pytest.raises(ConfigError, match="requests_per_s must be positive"):
        open_loop(SPEC, CHIP, Layout(), PRECISION, ASK, SERVING, requests_per_s=0.0)


def test_interval_is_a_floor_of_tpot() -> None:
    kept = open_loop(SPEC, CHIP, Layout(), PRECISION, ASK, SERVING, requests_per_s=0.5, interval_s=0.050)
    assert kept.estimate_tpot_s >= 0.050


def test_prompts_of_others_slow_decoding() -> None:
    short = closed_loop(SPEC, CHIP, Layout(), PRECISION, loop(input_tokens=128.0), SERVING)
    long = closed_loop(SPEC, CHIP, Layout(), PRECISION, loop(input_tokens=8000.0), SERVING)
    assert long.estimate_tpot_s > 1.1 * short.estimate_tpot_s
    cached = closed_loop(SPEC, CHIP, Layout(), PRECISION, loop(input_tokens=8000.0, prefix_hit_frac=0.9), SERVING)
    assert short.estimate_tpot_s < cached.estimate_tpot_s < long.estimate_tpot_s
    assert cached.estimate_ttft_s < long.estimate_ttft_s


def test_prefill_first_moves_the_pause_from_tpot_to_ttft_where_requests_end_together() -> None:
    def cost(first: float, equal: float) -> ServingCost:
        load = loop(input_tokens=8000.0, concurrency=64.0, equal_lengths_frac=equal)
        policy = SERVING.adjusted(prefill_first_frac=first, bunching_frac=1.0)
        return closed_loop(SPEC, CHIP, Layout(), PRECISION, load, policy)

    mixed, waves, staggered = cost(0.0, 1.0), cost(1.0, 1.0), cost(1.0, 0.0)
    assert waves.estimate_tpot_s < mixed.estimate_tpot_s and waves.estimate_ttft_s > mixed.estimate_ttft_s
    alone = step_cost(SPEC, CHIP, Layout(), PRECISION, StepBatch.prefill(1.0, 8000.0), SERVING)
    added_s = mixed.mixed.estimate_s - mixed.decode.estimate_s
    per_prompt_s = (staggered.estimate_tpot_s - mixed.estimate_tpot_s) / (63.0 / 1024.0)
    assert per_prompt_s == pytest.approx(alone.estimate_s - added_s, rel=1e-6) and per_prompt_s > 0


def test_a_boarding_prompt_holds_up_every_decoder_by_its_host_time() -> None:
    load = loop(output_tokens=128.0, concurrency=65.0)
    quick, slow = (
        closed_loop(SPEC, CHIP, Layout(), PRECISION, load, SERVING.adjusted(prompt_overhead_s=seconds)).estimate_tpot_s
        for seconds in (0.0, 0.004)
    )
    assert slow - quick == pytest.approx(64 / 128 * 0.004)


def test_a_module_of_the_models_own_drafts_before_each_verification() -> None:
    load = loop(draft_tokens=3.0, tokens_per_step=2.4)

    def tpot(drafter: Drafter | None) -> float:
        amounts = serving_amounts(SPEC, CHIP, Layout(tp=2), PRECISION, load, drafter=drafter)
        return float(price_serving(amounts, CHIP, SERVING).estimate_tpot_s)

    drafting_s = (tpot(own_module("gpt-oss", SPEC)) - tpot(None)) * 2.4
    one_pass = step_cost(
        own_module("gpt-oss", SPEC).spec, CHIP, Layout(tp=2), PRECISION, StepBatch.decode(16.0, 1536.0), SERVING.adjusted(step_overhead_s=0.0)
    )  # fmt: skip
    assert drafting_s == pytest.approx(3 * one_pass.estimate_s)


def test_clients_beyond_memory_wait_for_a_seat() -> None:
    spec, precision = model_spec("llama-3.1-70b"), Precision.named("fp8")
    cost = closed_loop(
        spec, accelerator("h100"), Layout(tp=2), precision, loop(input_tokens=8000.0, concurrency=500.0), SERVING
    )
    assert cost.running < 100
    assert cost.estimate_ttft_s > 3 * 1024 * cost.estimate_tpot_s
    with pytest.raises(PlanError, match="leaves no room for one sequence"):
        closed_loop(spec, accelerator("h100"), Layout(), Precision(), loop(), SERVING)


def test_intervals_hold_the_estimate_and_never_pass_the_floor() -> None:
    cost = closed_loop(SPEC, CHIP, Layout(), PRECISION, loop(), SERVING)
    for name in ("tpot_s", "ttft_s", "tokens_per_s"):
        low, high = cost.interval(name)
        assert low < getattr(cost, "estimate_" + name) < high
    assert cost.interval("tpot_s")[0] >= cost.decode.floor_s


def test_workload_properties() -> None:
    ask = Workload(input_tokens=1000.0, output_tokens=200.0, thinking_tokens=800.0, prefix_hit_frac=0.5, rollouts=4.0)
    assert (ask.decoded_tokens, ask.computed_input_tokens) == (1000.0, 125.0)
    assert ask.loop(8.0).prefix_hit_frac == pytest.approx(0.875)
    assert ask.first_visible_s(0.1, 0.01) == pytest.approx(8.1)
    with pytest.raises(ConfigError, match="prefix_hit_frac must lie in \\[0, 1\\]"):
        Workload(input_tokens=1.0, output_tokens=1.0, prefix_hit_frac=1.5)
