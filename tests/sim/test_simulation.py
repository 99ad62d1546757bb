"""One scheduler, two clocks: the same trace is decided alike whether a model runs or only its predicted seconds pass."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.cost.calibration import BEFORE_FIT
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.timer import CostTimer
from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Submit
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.scheduler import Limits
from ridgepoint.sched.step import Batch, Executor, StepResult, StepShape
from ridgepoint.sim.clock import SimulatedClock
from ridgepoint.sim.replica import whole_runs
from ridgepoint.sim.run import simulate
from ridgepoint.sim.traffic import Arrival, busy_span_s, poisson, prompt_ids

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))


@dataclass
class Cost:
    seconds: float


class LinearTimer:
    def seconds(self, shape: StepShape) -> Cost:
        return Cost(0.010 + 0.0005 * sum(shape.new_tokens) + 0.00001 * sum(shape.cached_tokens))


LIMITS = {
    "num_blocks": 60, "block_tokens": 4, "max_num_seqs": 6, "max_step_tokens": 24, "max_context": 120, "max_waiting": 8,
}  # fmt: skip


def decisions(batch: Batch) -> list[tuple[str, int, int, tuple[int, ...]]]:
    return [(s.request.id, s.start, s.num_tokens, tuple(s.request.blocks)) for s in batch.segments]


class TimedExecutor:
    """A real executor whose steps take the predicted time, and a note of what was run."""

    def __init__(self, real: Executor, clock: SimulatedClock) -> None:
        self.real, self.clock, self.log = real, clock, []  # type: ignore[var-annotated]

    def run(self, batch: Batch) -> StepResult:
        self.log.append(decisions(batch))
        result = self.real.run(batch)
        assert batch.predicted is not None
        self.clock.advance(batch.predicted.seconds)
        return result


@pytest.mark.parametrize("step_budget_s", [None, 0.018])
def test_the_engine_and_the_simulator_decide_alike(step_budget_s: float | None) -> None:
    from tiny_model import VOCAB, tiny_decoder

    from ridgepoint.engine.torch_engine import engine_around

    traffic = poisson(
        requests_per_s=25, num_requests=40, prompt_tokens=30, output_tokens=20, spread=0.6, shared_frac=0.4,
        num_shared=2, seed=1,
    )  # fmt: skip
    limits = LIMITS | {"step_budget_s": step_budget_s}
    simulated: list[object] = []
    outcome = simulate(
        traffic, Limits(**limits), LinearTimer(), on_batch=lambda batch: simulated.append(decisions(batch))
    )

    options = EngineOptions(model="tiny", hardware="epyc-9654", **limits)  # the timer is ours
    engine = engine_around(tiny_decoder(), options, lambda line: None, name="tiny", eos_ids=(), timer=LinearTimer())
    clock = SimulatedClock()
    executor = TimedExecutor(engine.executor, clock)
    core = EngineCore(engine.facts, engine.scheduler, executor, clock)
    to_come = list(enumerate(traffic))
    while to_come or not core.idle:
        if core.idle:
            clock.advance_to(to_come[0][1].at_s)
        while to_come and to_come[0][1].at_s <= clock.now():
            number, arrival = to_come.pop(0)
            ids = [token % VOCAB for token in prompt_ids(arrival, number)]
            params = SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True, temperature=0.0)
            core.handle(Submit(request_id=str(number), prompt_ids=ids, params=params))
        core.step()
    assert executor.log == simulated
    assert outcome.preemptions == engine.scheduler.preemptions_total
    assert outcome.end_s == clock.now()
    assert any(one.cached_tokens for one in outcome.served)
    assert any(one.refused for one in outcome.served)  # the trace is more than it can take
    if step_budget_s is None:
        assert outcome.preemptions > 0


@pytest.mark.skipif(not native.available(), reason="latents are lifted natively")
def test_the_engine_and_the_simulator_find_the_same_latents() -> None:
    """A CPU computes whole runs of a prompt in another form, so what is reused depends on where each prompt ends."""
    from tiny_model import VOCAB, latent_decoder, tiny_engine

    from ridgepoint.engine.llm import LLM
    from ridgepoint.models.pack import pack_decoder

    decoder = latent_decoder()
    pack_decoder(decoder)
    runs = whole_runs(decoder.spec, accelerator("epyc-9654"))
    assert runs == (32,) and whole_runs(decoder.spec, accelerator("h100")) == ()
    limits = LIMITS | {"block_tokens": 16, "max_step_tokens": 128}
    lengths = (100, 80, 110, 63, 120, 97, 40, 33)
    traffic = [
        Arrival(at_s=float(i), prompt_tokens=length, output_tokens=1, shared_tokens=length)
        for i, length in enumerate(lengths)
    ]
    engine = LLM(tiny_engine(decoder, **(limits | {"max_context": 128})))
    params = SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0)
    prompts = [[token % VOCAB for token in prompt_ids(arrival, i)] for i, arrival in enumerate(traffic)]
    found = [engine.generate([prompt], params)[0].cached_tokens for prompt in prompts]
    for runs_told, as_found in ((runs, True), ((), False)):
        outcome = simulate(traffic, Limits(**(limits | {"max_context": 128})), LinearTimer(), whole_runs=runs_told)
        assert ([one.cached_tokens for one in outcome.served] == found) == as_found
    assert any(found)


def test_times_are_what_the_timer_says() -> None:
    outcome = simulate([Arrival(at_s=1.0, prompt_tokens=10, output_tokens=3)], Limits(**LIMITS), LinearTimer())
    (one,) = outcome.served
    assert one.admitted_s == 1.0
    assert one.simulate_ttft_s == pytest.approx(0.010 + 10 * 0.0005)
    assert one.simulate_tpot_s == pytest.approx((0.0105 + 0.0001 + 0.0105 + 0.00011) / 2)
    assert outcome.num_steps == 3 and outcome.end_s == pytest.approx(1.0 + outcome.busy_s)
    assert outcome.percentiles("simulate_ttft_s")[50] == pytest.approx(one.simulate_ttft_s)
    assert outcome.simulate_output_tokens_per_s == pytest.approx(3 / outcome.end_s)


def test_a_timetable_bounds_the_wait_at_two_intervals() -> None:
    """While what arrives fits, who just missed a step waits one interval to board and one to arrive."""
    interval_s = 0.020
    traffic = [Arrival(at_s=i * 0.0237, prompt_tokens=8, output_tokens=6) for i in range(300)]
    limits = Limits(
        **(LIMITS | {"num_blocks": 400, "max_num_seqs": 16, "step_budget_s": interval_s, "max_waiting": 50})
    )
    outcome = simulate(traffic, limits, LinearTimer())
    assert not any(one.refused for one in outcome.served)
    assert max(one.simulate_ttft_s for one in outcome.served) <= 2 * interval_s
    assert max(one.simulate_ttft_s for one in outcome.served) > interval_s
    assert busy_span_s(traffic) < outcome.end_s


def test_overload_is_refused_not_queued_for_ever() -> None:
    traffic = [Arrival(at_s=0.0, prompt_tokens=20, output_tokens=20) for _ in range(30)]
    outcome = simulate(
        [*traffic, Arrival(at_s=9.0, prompt_tokens=200, output_tokens=1)], Limits(**LIMITS), LinearTimer()
    )
    refused = [one for one in outcome.served if one.refused]
    assert len(refused) == 30 - LIMITS["max_num_seqs"] - LIMITS["max_waiting"] + 1
    assert "queue is full" in str(refused[0].refused) and "200 tokens" in str(refused[-1].refused)
    assert all(len(one.token_times_s) == 20 for one in outcome.served if not one.refused)


def test_the_cost_model_times_steps_monotonically_and_remembers_them() -> None:
    from tiny_model import CONFIG

    from ridgepoint.catalog.families import spec_from_config

    timer = CostTimer(spec_from_config(CONFIG), accelerator("h100"), Precision.named("bf16"), BEFORE_FIT)
    decoding, cached = [1] * 9, [300] * 9
    last_s = 0.0
    for chunk in range(1, 200):
        seconds = timer.seconds(StepShape([*decoding, chunk], [*cached, 64], 10)).seconds
        assert seconds >= last_s
        last_s = seconds
    again = timer.seconds(StepShape([*decoding, 199], [*cached, 64], 10))
    assert again is timer.seconds(StepShape([199, *decoding], [64, *cached], 10))
    outcome = simulate(
        poisson(requests_per_s=2000, num_requests=50, prompt_tokens=30, output_tokens=5),
        Limits(**(LIMITS | {"num_blocks": 400, "max_waiting": 60})), timer,
    )  # fmt: skip
    assert all(len(one.token_times_s) == 5 for one in outcome.served)


def test_traffic_is_checked() -> None:
    for wrong in ({"at_s": -1.0}, {"prompt_tokens": 0}, {"output_tokens": 0}, {"shared_tokens": 9}):
        with pytest.raises(ConfigError):
            Arrival(**({"at_s": 0.0, "prompt_tokens": 4, "output_tokens": 4} | wrong))  # type: ignore[arg-type]
    for rate, count, spread in ((0.0, 1, 0.0), (1.0, 0, 0.0), (1.0, 1, 1.0)):
        with pytest.raises(ConfigError):
            poisson(requests_per_s=rate, num_requests=count, prompt_tokens=1, output_tokens=1, spread=spread)
