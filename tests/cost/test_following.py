"""Predictions that follow the machine: they find its speed, are hard to mislead, and never know a step before it is over."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.catalog.hardware import accelerator_from_table
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost.arrays import soft_max
from ridgepoint.cost.following import FADE_S, FADE_STEPS, FAR, NOISE, PARTS, SPREAD, FollowingTimer, MachineSpeed
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.timer import CostTimer, StepParts
from ridgepoint.cost.transfer import calibration_for
from ridgepoint.sched.step import StepShape

CHIP = accelerator_from_table("box", {"kind": "cpu", "flops_per_s_bf16": 8e11, "memory_bytes_per_s": 4e10})
CALIBRATED = CostTimer(
    model_spec("gpt-oss-20b"), CHIP, Precision(), calibration_for(CHIP, "serving")
)  # two kinds of layer
DECODES = [StepShape([1] * count, [300 + 7 * count] * count, count) for count in (1, 3, 8, 20)]
PROMPTS = [StepShape([*[1] * count, chunk], [500] * count + [0], count) for count in (0, 9) for chunk in (96, 512)]
TRAFFIC = [DECODES[0], PROMPTS[0], DECODES[2], PROMPTS[3], DECODES[3], PROMPTS[1], DECODES[1], PROMPTS[2]]


class Machine:
    """Takes as long as the law says at speeds that can be set, but for noise."""

    def __init__(self, noise: float = 0.0) -> None:
        self.speed = dict.fromkeys(PARTS, 1.0)
        self._noise, self._random = noise, random.Random(0)

    def seconds(self, parts: StepParts) -> float:
        kernels = sum(
            soft_max(compute_s / self.speed["compute"], memory_s / self.speed["memory"], parts.overlap_power)
            for compute_s, memory_s in parts.kernels
        )
        exact = float(kernels + parts.overhead_s / self.speed["overhead"])
        return exact * math.exp(self._noise * self._random.gauss(0, 1))


def parts_of(shape: StepShape) -> StepParts:
    return CALIBRATED.seconds(shape).parts


def serve(speed: MachineSpeed, machine: Machine, shapes: Iterable[StepShape]) -> list[float]:
    """|log| of predicted over measured, of each step."""
    errors = []
    for shape in shapes:
        measured_s = machine.seconds(parts_of(shape))
        errors.append(abs(math.log(speed.seconds(parts_of(shape)) / measured_s)))
        speed.learn(parts_of(shape), measured_s)
    return errors


def test_before_the_first_step_the_calibrated_law_speaks() -> None:
    timer = FollowingTimer(CALIBRATED)
    for shape in TRAFFIC:
        step = timer.seconds(shape)
        assert step.seconds == pytest.approx(step.calibrated_s, rel=1e-12)
        assert step.calibrated_s == CALIBRATED.seconds(shape).seconds


def test_exact_steps_teach_nothing() -> None:
    speed = MachineSpeed()
    assert max(serve(speed, Machine(), TRAFFIC * 30)) < 1e-12
    assert list(speed.relative.values()) == pytest.approx([1.0] * len(PARTS), rel=1e-11)


@pytest.mark.parametrize("part", ["compute", "memory"])
@pytest.mark.parametrize("factor", [0.45, 0.8, 1.9])
def test_a_part_that_changes_its_speed_is_found(part: str, factor: float) -> None:
    speed, machine = MachineSpeed(), Machine(noise=0.02)
    serve(speed, machine, TRAFFIC * 10)
    machine.speed[part] = factor
    serve(speed, machine, TRAFFIC * 3)  # to see it
    assert np.median(serve(speed, machine, TRAFFIC * 5)) < 0.04
    others = {name: value for name, value in speed.relative.items() if name in ("compute", "memory") and name != part}
    assert speed.relative[part] == pytest.approx(factor, rel=0.1)
    assert list(others.values()) == pytest.approx([1.0] * len(others), rel=0.15)
    machine.speed[part] = 1.0
    serve(speed, machine, TRAFFIC * 3)
    assert np.median(serve(speed, machine, TRAFFIC * 5)) < 0.04


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.tuples(st.sampled_from(PARTS), st.floats(0.3, 3.0)), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_any_row_of_speeds_is_followed(factors: Sequence[tuple[str, float]], order: random.Random) -> None:
    speed, machine = MachineSpeed(), Machine()
    for part, factor in factors:
        machine.speed[part] = factor
        serve(speed, machine, [order.choice(TRAFFIC) for _ in range(60)])
        assert np.median(serve(speed, machine, [order.choice(TRAFFIC) for _ in range(20)])) < 0.05


def test_constants_of_another_machine_are_outgrown() -> None:
    """Five times too slow a law, as when a file is carried to a machine or a model it was not made for."""
    speed, machine = MachineSpeed(), Machine()
    machine.speed = dict.fromkeys(PARTS, 5.0)
    assert serve(speed, machine, TRAFFIC * 8)[0] > 1.5
    assert max(serve(speed, machine, TRAFFIC * 2)) < 0.1


@pytest.mark.parametrize("steps_before", [1, 80])
@pytest.mark.parametrize("factor", [6.0, 1000.0])
def test_one_step_that_was_interrupted_hardly_moves_it(steps_before: int, factor: float) -> None:
    speed, machine = MachineSpeed(), Machine(noise=0.01)
    serve(speed, machine, [DECODES[2]] * steps_before)
    before = speed.seconds(parts_of(DECODES[2]))
    speed.learn(parts_of(DECODES[2]), factor * machine.seconds(parts_of(DECODES[2])))
    moved = math.log(speed.seconds(parts_of(DECODES[2])) / before)
    assert 0 < moved < 0.2  # however long it hung
    serve(speed, machine, [DECODES[2]] * 4)
    assert abs(math.log(speed.seconds(parts_of(DECODES[2])) / before)) < 0.05


def test_what_no_step_shows_keeps_its_speed_and_is_no_more_uncertain_than_at_first() -> None:
    speed, machine = MachineSpeed(), Machine()
    machine.speed["compute"] = 0.7
    serve(speed, machine, PROMPTS * 20)
    known = speed.relative["compute"]
    machine.speed["memory"] = 0.5
    serve(speed, machine, [DECODES[0]] * 3000)
    assert speed.relative["compute"] == pytest.approx(known, rel=0.1)
    assert max(serve(speed, machine, PROMPTS * 2)) < 0.2


measured = st.floats(1e-9, 1e6)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(TRAFFIC), measured), min_size=1, max_size=60))
def test_nothing_makes_it_lose_its_senses(steps: list[tuple[StepShape, float]]) -> None:
    """Speeds stay positive and finite, the covariance one of something, and within the prior's."""
    speed = MachineSpeed()
    for shape, seconds in steps:
        speed.learn(parts_of(shape), seconds)
        assert all(0 < value < math.inf for value in speed.relative.values())
        assert 0 < speed.seconds(parts_of(shape)) < math.inf
        values = np.linalg.eigvalsh(np.array(speed._covariance))
        assert values.min() > 0 and values.max() <= SPREAD**2 * (1 + 1e-9)


def test_a_clock_that_saw_nothing_teaches_nothing() -> None:
    speed = MachineSpeed()
    speed.learn(parts_of(DECODES[0]), 0.0)
    assert speed.relative == dict.fromkeys(PARTS, 1.0)


def test_a_prediction_knows_its_own_step_and_later_ones_nothing() -> None:
    """Two machines that part at one step: up to it and for it they are promised the same."""

    def promised(slower_from: int) -> list[float]:
        timer, machine = FollowingTimer(CALIBRATED), Machine(noise=0.05)
        found = []
        for place, shape in enumerate(TRAFFIC * 3):
            step = timer.seconds(shape)
            found.append(step.seconds)
            timer.learn(step, machine.seconds(step.parts) * (1.3 if place >= slower_from else 1.0))
        return found

    usual, other = promised(99), promised(13)
    assert usual[:14] == other[:14] and usual[14] != other[14]


def test_being_asked_changes_nothing_and_the_order_of_sequences_neither() -> None:
    plain, asked = FollowingTimer(CALIBRATED), FollowingTimer(CALIBRATED)
    machine = Machine(noise=0.05)
    for shape in TRAFFIC * 2:
        turned = StepShape(shape.new_tokens[::-1], shape.cached_tokens[::-1], shape.num_samples)
        for other in PROMPTS:
            asked.seconds(other)
        step, same = plain.seconds(shape), asked.seconds(turned)
        assert step.seconds == same.seconds
        seconds = machine.seconds(step.parts)
        plain.learn(step, seconds)
        asked.learn(same, seconds)
    assert plain.speed.relative == asked.speed.relative


@pytest.mark.parametrize("memory", [0.3, 1.0, 3.0])
def test_a_step_with_more_tokens_is_never_predicted_to_be_shorter(memory: float) -> None:
    timer, machine = FollowingTimer(CALIBRATED), Machine()
    machine.speed["memory"] = memory
    serve(timer.speed, machine, TRAFFIC * 8)
    last_s = 0.0
    for chunk in range(1, 600, 7):
        seconds = timer.seconds(StepShape([1] * 9 + [chunk], [300] * 9 + [64], 10)).seconds
        assert seconds >= last_s
        last_s = seconds


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["steps of seconds", "of milliseconds"])
def test_it_is_the_filter_it_says_it_is(scale: float) -> None:
    """Against the textbook's matrices, with derivatives by differences."""
    speed, machine = MachineSpeed(), Machine(noise=0.1)
    state, covariance, prior = np.zeros(3), np.eye(3) * SPREAD**2, np.eye(3) * SPREAD**2

    def log_seconds(parts: StepParts, at: np.ndarray) -> float:
        slow = np.exp(at)
        kernels = (soft_max(slow[0] * c, slow[1] * m, parts.overlap_power) for c, m in parts.kernels)
        return math.log(sum(kernels) + slow[2] * parts.overhead_s)

    for place, shape in enumerate(TRAFFIC * 4):
        whole = parts_of(shape)
        kernels = tuple((scale * compute_s, scale * memory_s) for compute_s, memory_s in whole.kernels)
        parts = StepParts(kernels, scale * whole.overhead_s, whole.overlap_power)
        seconds = machine.seconds(parts) * (5.0 if place % 7 == 5 else 1.0)
        step = 1e-5 * np.eye(3)
        slope = np.array([(log_seconds(parts, state + d) - log_seconds(parts, state - d)) / 2e-5 for d in step])
        kept = math.exp(-max(math.exp(log_seconds(parts, state)) / FADE_S, 1 / FADE_STEPS))
        covariance = kept * covariance + (1 - kept) * prior
        deviation = math.sqrt(slope @ covariance @ slope + NOISE**2)
        surprise = (math.log(seconds) - log_seconds(parts, state)) / deviation
        state = state + covariance @ slope / deviation * np.clip(surprise, -FAR, FAR)
        if abs(surprise) <= FAR:
            covariance = covariance - np.outer(covariance @ slope, covariance @ slope) / deviation**2
        speed.learn(parts, seconds)
        assert list(speed.relative.values()) == pytest.approx(np.exp(-state).tolist(), rel=1e-7)
