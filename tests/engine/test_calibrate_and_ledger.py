"""Steps timed on a real (tiny) engine, and the ledger of what steps took against what was predicted."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_decoder, tiny_engine

from ridgepoint.catalog.hardware import accelerator_from_table
from ridgepoint.cost.timer import CostTimer
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.engine.ledger import StepLedger
from ridgepoint.engine.prediction import precision_of
from ridgepoint.engine.protocol import RATIO_EDGES
from ridgepoint.engine.step_times import measure_steps, shapes_within
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.models.pack import pack_decoder
from ridgepoint.sched.scheduler import Limits
from ridgepoint.sched.step import Batch, StepResult, StepShape

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
    from ridgepoint.engine.protocol import Submit
    from ridgepoint.sched.params import SamplingParams

    core.handle(Submit(request_id="a", prompt_ids=[1, 2], params=SamplingParams(max_tokens=4)))
    with pytest.raises(ConfigError, match="while no request runs"):
        measure_steps(core, [StepShape([1], [64], 1)])


@pytest.mark.skipif(not native.available(), reason="packed formats need the native library")
@pytest.mark.parametrize(
    ("fmt", "named", "activations"),
    [("int8", "int8", "bf16"), ("int4-32", "int4_g32", "bf16"), ("int8-a8", "int8", "int8"), (None, "bf16", "bf16")],
)
def test_precision_is_read_off_the_weights(fmt: str | None, named: str, activations: str) -> None:
    decoder = tiny_decoder(torch.bfloat16)
    pack_decoder(decoder, fmt)
    precision = precision_of(decoder)
    assert (precision.experts, precision.weights, precision.kv) == (named, named, "bf16")
    assert (precision.activations, precision.attention) == (activations, "bf16")


def timer() -> CostTimer:
    chip = accelerator_from_table("box", CHIP | {"usd_per_hour_low": 0.36, "usd_per_hour_high": 0.36})
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


def test_ledger_leaves_out_what_was_not_predicted() -> None:
    ledger = StepLedger()
    ledger.enter(Batch([], None), StepResult(token_ids=[], seconds=1.0))
    assert ledger.totals() is None
