"""Native routed experts: the corners of routing, error, and bits that depend on nothing but the token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from native_support import ISAS, SLACK, needs_native, rms, same_bits_whoever_computes, surrounded

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu, SwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.moe_experts import cpu, moe_experts, reference
from ridgepoint.kernels.packed import Packed, pack

pytestmark = needs_native
CLAMPED = ClampedSwiGlu(alpha=1.702, limit=1.5)


@dataclass
class Case:
    x: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    bias_gate_up: torch.Tensor
    bias_down: torch.Tensor

    def packed(self) -> tuple[Packed, Packed]:
        return pack(self.gate_up, glu=True), pack(self.down)

    def truth(self, activation: Activation) -> torch.Tensor:
        wide = [t.double() for t in (self.x, self.weights)]
        rest = [t.double() for t in (self.gate_up, self.down)]
        return reference.moe_experts(
            *wide, self.ids, *rest, activation, self.bias_gate_up.double(), self.bias_down.double()
        )

    def unfused(self, activation: Activation) -> torch.Tensor:
        return cpu.moe_experts(
            self.x, self.weights, self.ids, self.gate_up, self.down, activation, self.bias_gate_up, self.bias_down
        )


def _case(
    tokens: int, d: int, f: int, experts: int, k: int, dtype: torch.dtype = torch.bfloat16, one: int | None = None
) -> Case:
    made = torch.Generator().manual_seed(tokens + d + f)
    ids = torch.stack([torch.randperm(experts, generator=made)[:k] for _ in range(tokens)])
    if one is not None:
        ids = torch.full((tokens, k), one)
    return Case(
        torch.randn(tokens, d, generator=made).to(dtype),
        torch.rand(tokens, k, generator=made),
        ids,
        (torch.randn(experts, 2 * f, d, generator=made) / d**0.5).to(dtype),
        (torch.randn(experts, d, f, generator=made) / f**0.5).to(dtype),
        torch.randn(experts, 2 * f, generator=made),
        torch.randn(experts, d, generator=made),
    )


CASES = {
    "empty_experts": _case(3, 64, 32, 16, 2),
    "widths_no_multiple_of_a_tile": _case(17, 75, 50, 7, 3),
    "one_expert_takes_all": _case(19, 96, 40, 5, 1, one=3),
    "k_is_1": _case(11, 128, 64, 4, 1),
    "k_is_e": _case(9, 66, 33, 4, 4),
    "one_token": _case(1, 128, 96, 8, 2),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("activation", [SwiGlu(), CLAMPED], ids=["swiglu", "clamped"])
def test_as_exact_as_an_unfused_computation(isa: str, name: str, activation: Activation) -> None:
    case = CASES[name]
    with native.forced_isa(isa):
        got = moe_experts(case.x, case.weights, case.ids, *case.packed(), activation, case.bias_gate_up, case.bias_down)
    truth = case.truth(activation)
    assert rms(got.double() - truth) <= SLACK * rms(case.unfused(activation).double() - truth)


@pytest.mark.parametrize("isa", ISAS)
def test_float32_experts(isa: str) -> None:
    case = _case(10, 70, 45, 6, 2, dtype=torch.float32)
    with native.forced_isa(isa):
        got = moe_experts(case.x, case.weights, case.ids, *case.packed(), SwiGlu(), case.bias_gate_up, case.bias_down)
    assert rms(got.double() - case.truth(SwiGlu())) <= 2e-6 * rms(got)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_the_token_alone(isa: str) -> None:
    case = _case(40, 70, 50, 6, 3)
    with native.forced_isa(isa):
        gate_up, down = case.packed()

        def run(first: int, last: int) -> torch.Tensor:
            rows = slice(first, last)
            return moe_experts(case.x[rows], case.weights[rows], case.ids[rows], gate_up, down, SwiGlu())

        whole = same_bits_whoever_computes(lambda: run(0, 40))
        for first, last in ((0, 1), (1, 3), (3, 20), (20, 40)):
            assert torch.equal(run(first, last), whole[first:last])


def test_bits_do_not_depend_on_how_wide_outputs_are_cut() -> None:
    case = _case(300, 600, 32, 4, 2)  # ten panels: several an item for few tokens, one for many
    gate_up, down = case.packed()

    def run(first: int, last: int) -> torch.Tensor:
        rows = slice(first, last)
        return moe_experts(
            case.x[rows], case.weights[rows], case.ids[rows], gate_up, down, SwiGlu(), None, case.bias_down
        )

    whole = same_bits_whoever_computes(lambda: run(0, 300))
    for first, last in ((0, 1), (1, 6), (6, 76), (76, 160)):
        few = same_bits_whoever_computes(lambda first=first, last=last: run(first, last))
        assert torch.equal(few, whole[first:last])


def test_bits_of_long_and_short_batches() -> None:
    case = _case(600, 64, 32, 4, 2)
    gate_up, down = case.packed()
    whole = same_bits_whoever_computes(lambda: moe_experts(case.x, case.weights, case.ids, gate_up, down, SwiGlu()))
    for t in (0, 255, 256, 599):
        rows = slice(t, t + 1)
        assert torch.equal(
            moe_experts(case.x[rows], case.weights[rows], case.ids[rows], gate_up, down, SwiGlu()), whole[rows]
        )


# By how many of 90 tokens experts are seen, in ascending order, behind one that takes all other routes.
SKEWED = {
    "one_of_many_rows_first": [90] + [3] * 30,
    "one_of_many_rows_last": [2] * 45 + [90],
    "more_of_few_rows_than_one_unit_takes": [90] + [1] * 90,
    "few_rows_at_the_end": [90, 1, 1, 1],
    "many_in_turn": [60, 1, 0, 30, 2, 7, 40, 3, 1, 25, 10],
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["bf16", "bf16-12"])
@pytest.mark.parametrize("counts", SKEWED.values(), ids=SKEWED)
def test_few_rows_multiplied_between_the_tiles_of_many_are_added_in_their_turn(
    isa: str, fmt: str, counts: list[int]
) -> None:
    tokens, k = 90, 3
    made, free = torch.Generator().manual_seed(3), [list(range(k)) for _ in range(tokens)]
    case = _case(tokens, 96, 40, 1 + len(counts), k)
    case.ids = torch.zeros(tokens, k, dtype=torch.int64)
    # Large addends that cancel: what is left of the small ones shows their order.
    case.weights = torch.ones(tokens, k)
    case.bias_down = torch.randint(-1, 2, (1 + len(counts), 96), generator=made) * 2.0**20
    for expert, count in enumerate(counts, start=1):
        order = sorted(torch.randperm(tokens, generator=made).tolist(), key=lambda t: -len(free[t]))
        for t in order[:count]:
            case.ids[t, free[t].pop()] = expert
    with native.forced_isa(isa):
        gate_up, down = pack(case.gate_up, fmt, glu=True), pack(case.down, fmt)

        def run(first: int, last: int) -> torch.Tensor:
            rows = slice(first, last)
            return moe_experts(
                case.x[rows], case.weights[rows], case.ids[rows], gate_up, down, SwiGlu(), None, case.bias_down
            )

        whole = same_bits_whoever_computes(lambda: run(0, tokens))
        for t in range(tokens):
            assert torch.equal(run(t, t + 1), whole[t : t + 1]), f"token {t}"


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_outside_the_operands_is_read(isa: str) -> None:
    case = _case(6, 75, 50, 5, 2)
    with native.forced_isa(isa):
        gate_up, down = case.packed()
        plain = moe_experts(case.x, case.weights, case.ids, gate_up, down, SwiGlu())
        assert torch.equal(moe_experts(surrounded(case.x), case.weights, case.ids, gate_up, down, SwiGlu()), plain)


def test_unused_experts_may_hold_anything() -> None:
    case = _case(6, 64, 32, 5, 1, one=2)
    clean = moe_experts(case.x, case.weights, case.ids, *case.packed(), SwiGlu())
    for expert in (0, 1, 3, 4):
        case.gate_up[expert] = float("nan")
        case.down[expert] = float("nan")
    assert torch.equal(moe_experts(case.x, case.weights, case.ids, *case.packed(), SwiGlu()), clean)


def test_an_expert_that_does_not_exist_is_refused() -> None:
    case = _case(4, 64, 32, 5, 2)
    case.ids[2, 1] = 5
    with pytest.raises(native.NativeError, match="expert id"):
        moe_experts(case.x, case.weights, case.ids, *case.packed(), SwiGlu())
