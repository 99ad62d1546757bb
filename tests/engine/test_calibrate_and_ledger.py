"""Steps timed on a real (tiny) engine, and the ledger of what steps took against what was predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_model import tiny_decoder, tiny_engine

from ridgepoint.catalog.hardware import accelerator_from_table
from ridgepoint.cost.following import FollowingTimer
from ridgepoint.cost.timer import CostTimer, TimedStep
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.ledger import StepLedger
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.prediction import precision_of
from ridgepoint.engine.protocol import RATIO_EDGES, StepReport, Submit
from ridgepoint.engine.step_times import measure_steps, shapes_within
from ridgepoint.engine.torch_engine import engine_around
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.models.pack import pack_decoder
from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.scheduler import Limits
from ridgepoint.sched.step import Batch, Executor, StepResult, StepShape

CHIP = {"kind": "cpu", "flops_per_s_bf16": 1e12, "flops_per_s_fp32": 1e11, "memory_bytes_per_s": 5e10}


@pytest.mark.parametrize("seqs", [1, 3, 8])
def test_shapes_fit_the_server(seqs: int) -> None:
    limits = Limits(
        num_blocks=60, block_tokens=16, max_num_seqs=seqs, max_step_tokens=128, max_context=900, max_waiting=1
    )
    shapes = shapes_within(limits)
    assert StepShape([1], [64], 1) in shapes
    for shape in shapes:
        ends = [new + cached for new, cached in zip(shape.new_tokens, shape.cached_tokens, strict=True)]
        assert len(ends) <= seqs and sum(shape.new_tokens) <= 128 and max(ends) < 900
        assert sum(-(-end // 16) for end in ends) <= 60


def test_steps_are_timed_through_the_executor_and_leave_the_engine_as_it_was() -> None:
    core = tiny_engine(tiny_decoder(), num_blocks=400)
    shapes = shapes_within(core.scheduler.limits)[:5]
    seconds = measure_steps(core, shapes, repeats=2)
    assert len(seconds) == len(shapes) and min(seconds) > 0
    assert core.idle and core.scheduler.pool.num_held == 0


def test_a_busy_engine_is_not_timed() -> None:
    core = tiny_engine(tiny_decoder())
    core.handle(Submit(request_id="a", prompt_ids=[1, 2], params=SamplingParams(max_tokens=4)))
    with pytest.raises(ConfigError, match="while no request runs"):
        measure_steps(core, [StepShape([1], [64], 1)])


@pytest.mark.skipif(not native.available(), reason="packed formats need the native library")
@pytest.mark.parametrize(
    ("fmt", "named", "activations"),
    [
        ("int8", "int8", "bf16"),
        ("int4-32", "int4_g32", "bf16"),
        ("int8-a8", "int8", "int8"),
        ("bf16", "bf16", "bf16"),
        ("bf16-12", "bf16_12", "bf16"),
    ],
)
def test_precision_is_read_off_the_weights(fmt: str | None, named: str, activations: str) -> None:
    decoder = tiny_decoder(torch.bfloat16)
    pack_decoder(decoder, fmt)
    precision = precision_of(decoder)
    assert (precision.experts, precision.weights, precision.kv) == (named, named, "bf16")
    assert (precision.activations, precision.attention) == (activations, "bf16")


def timer(**facts: float) -> CostTimer:
    chip = accelerator_from_table("box", CHIP | facts | {"usd_per_hour_low": 0.36, "usd_per_hour_high": 0.36})
    decoder = tiny_decoder()
    return CostTimer(decoder.spec, chip, precision_of(decoder), calibration_for(chip, "serving"))


def test_ledger_adds_up() -> None:
    ledger, priced = StepLedger(), timer().seconds(StepShape([1, 1], [10, 20], 2))
    assert ledger.totals() is None
    for factor in (1.0, 0.5, 4.0):
        ledger.enter(Batch([], priced), StepResult(token_ids=[], seconds=priced.seconds / factor))
    totals = ledger.totals()
    assert totals is not None and totals.steps == 3
    assert totals.predicted_s == pytest.approx(3 * priced.seconds)
    assert totals.measured_s == pytest.approx(priced.seconds * (1 + 2 + 0.25))
    assert sum(totals.roof_s.values()) == pytest.approx(totals.predicted_s)
    assert totals.usd == pytest.approx(totals.measured_s * 0.36 / 3600)
    assert totals.joules is None  # nobody knows this box's power
    assert sum(totals.ratio_counts) == 3
    at = {index for index, count in enumerate(totals.ratio_counts) if count}
    assert at == {RATIO_EDGES.index(0.5), RATIO_EDGES.index(1.0), len(RATIO_EDGES)}


def test_ledger_keeps_what_was_promised_apart_from_what_was_followed() -> None:
    following, shape = FollowingTimer(timer()), StepShape([1, 1], [10, 20], 2)
    ledger, promised_s = StepLedger(), timer().seconds(shape).seconds
    for _ in range(40):  # a machine at half its speed
        step = following.seconds(shape)
        ledger.enter(Batch([], step), StepResult(token_ids=[], seconds=2 * promised_s))
        following.learn(step, 2 * promised_s)
    totals = ledger.totals()
    assert totals is not None
    assert totals.predicted_s == pytest.approx(40 * promised_s) == pytest.approx(sum(totals.roof_s.values()))
    assert totals.ratio_counts[RATIO_EDGES.index(0.5)] == 40
    assert 0.8 * totals.measured_s < totals.followed_s < totals.measured_s
    near = totals.followed_counts[RATIO_EDGES.index(1.0)] + totals.followed_counts[RATIO_EDGES.index(1.05)]
    assert near > 30 and sum(totals.followed_counts) == 40


class Throttled:
    """A machine whose steps take `factor` times what the constants promise, and a note of what was predicted and taken."""

    def __init__(self, real: Executor, factor: float) -> None:
        self._real, self._factor = real, factor
        self.predicted_s: list[float] = []
        self.measured_s: list[float] = []

    def run(self, batch: Batch) -> StepResult:
        result = self._real.run(batch)
        assert isinstance(batch.predicted, TimedStep)
        result.seconds = self._factor * batch.predicted.calibrated_s
        self.predicted_s.append(batch.predicted.seconds)
        self.measured_s.append(result.seconds)
        return result


def served(factor: float, law: CostTimer, **options: Any) -> tuple[Throttled, StepReport, list[int]]:
    """Three short requests on a throttled machine: what was predicted, the last word, and the tokens of each step."""
    decoder = tiny_decoder()
    asked = EngineOptions(model="tiny", num_blocks=200, block_tokens=4, max_num_seqs=4, hardware="ours", **options)
    whole = engine_around(
        decoder, asked, lambda line: None, name="tiny", eos_ids=(), timer=(following := FollowingTimer(law))
    )
    machine = Throttled(whole.executor, factor)
    core = EngineCore(whole.facts, whole.scheduler, machine, follower=following)
    for number in range(3):
        params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0)
        core.handle(Submit(request_id=str(number), prompt_ids=[5 + number] * 60, params=params))
    tokens, reports = [], []
    while not core.idle:
        before = core.scheduler.computed_tokens_total
        core.step()
        tokens.append(core.scheduler.computed_tokens_total - before)
        reports += [message for message in core.take_outbox() if isinstance(message, StepReport)]
    return machine, reports[-1], tokens


def test_the_engine_tells_its_timer_what_steps_took() -> None:
    machine, report, _ = served(2.0, timer())
    first, last = (machine.predicted_s[i] / machine.measured_s[i] for i in (0, -1))
    assert first == pytest.approx(0.5) and last == pytest.approx(1.0, abs=0.05)
    assert report.machine_speed is not None and min(report.machine_speed.values()) < 0.6
    assert report.predicted_s == pytest.approx(machine.measured_s[-1] / 2)
    assert report.followed_s == machine.predicted_s[-1]
    assert report.totals is not None and report.totals.followed_s == pytest.approx(sum(machine.predicted_s))


def test_a_step_budget_is_filled_by_what_the_machine_does_now() -> None:
    law = timer(flops_per_s_fp32=2e9)  # arithmetic binds, so that fewer tokens are a shorter step
    budget_s = law.seconds(StepShape([48], [0], 0)).seconds
    (_, _, promised), (machine, _, followed) = (served(factor, law, step_budget_s=budget_s) for factor in (1.0, 1.5))
    assert followed[0] == promised[0] >= 48 and promised[1] > 40  # the first is filled before anything is known
    assert 16 <= max(followed[6:]) <= 36
    assert (
        machine.measured_s[0] == pytest.approx(1.5 * budget_s, rel=0.02)
        and max(machine.measured_s[6:]) < 1.1 * budget_s
    )


def test_ledger_leaves_out_what_was_not_predicted() -> None:
    ledger = StepLedger()
    ledger.enter(Batch([], None), StepResult(token_ids=[], seconds=1.0))
    assert ledger.totals() is None
