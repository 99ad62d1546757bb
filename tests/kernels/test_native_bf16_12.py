"""bf16 in 12 bits: every bit of every weight, the same sums as plain bf16, and a refusal of what does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_support import ISAS, needs_native, same_bits_whoever_computes, surrounded

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.linear import linear_f32
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.packed import ExponentsError, Packed, pack, plain_copy, whole_format

pytestmark = needs_native
FMT = "bf16-12"


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _with_rare(outputs: int, inputs: int, count: int, seed: int = 0) -> torch.Tensor:
    """Normal weights, `count` of which (the first and the last among them) have exponents of their own."""
    made = torch.Generator().manual_seed(seed)
    w = _normal(outputs, inputs, seed=seed)
    places = torch.randperm(w.numel(), generator=made)[:count]
    places[:2] = torch.tensor([0, w.numel() - 1])[:count]
    bits = w.view(torch.int16).flatten()
    exponents = torch.randint(1, 100, (count,), generator=made)
    bits[places] = (bits[places].int() & ~0x7F80 | exponents.int() << 7).to(torch.int16)
    return w


def _bits(packed: Packed) -> torch.Tensor:
    return packed.dense().view(torch.int32)


def test_it_takes_twelve_bits() -> None:
    assert pack(_normal(64, 2048), FMT).bits_per_weight < 12.15
    assert pack(_normal(64, 2048), "bf16").bits_per_weight == 16


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("glu", [False, True])
def test_every_bit_comes_back(isa: str, glu: bool) -> None:
    with native.forced_isa(isa):
        for outputs, inputs, rare in ((64, 256, 0), (64, 256, 1), (70, 300, 60), (2, 6, 2), (128, 37, 9)):
            w = _with_rare(outputs, inputs, rare)
            assert torch.equal(_bits(pack(surrounded(w), FMT, glu=glu))[0], w.float().view(torch.int32))


def test_zeros_infinities_and_the_smallest_numbers_come_back() -> None:
    w = _normal(64, 64)
    w.view(-1)[:8] = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, 2.0**-133, -(2.0**-133), 2.0**-126, 3e38]
    ).bfloat16()
    w[:, 9] = 0
    assert torch.equal(_bits(pack(w, FMT))[0], w.float().view(torch.int32))
    w[3, 5] = torch.nan
    assert bool(pack(w, FMT).dense()[0, 3, 5].isnan())


@pytest.mark.parametrize("isa", ISAS)
def test_sums_are_those_of_plain_weights(isa: str) -> None:
    """For every number of rows a tile can have, one tile or many, and exceptions beside each other."""
    for outputs, inputs, rare in ((64, 512, 120), (130, 96, 30), (70, 2, 4), (1, 3, 0)):
        w = _with_rare(outputs, inputs, rare, seed=outputs)
        narrow, plain = pack(w, FMT), pack(w, "bf16")
        with native.forced_isa(isa):
            for rows in (*range(1, 14), 23, 40):
                x = surrounded(_normal(rows, inputs, seed=rows))
                assert torch.equal(linear_f32(x, narrow), linear_f32(x, plain))


def _same_experts(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, gate_up: Packed, down: Packed
) -> torch.Tensor:
    return same_bits_whoever_computes(lambda: moe_experts(x, weights, ids, gate_up, down, SwiGlu()))


@pytest.mark.parametrize("isa", ISAS)
def test_experts_are_those_of_plain_weights(isa: str) -> None:
    d, f, experts, k = 96, 72, 5, 2
    gate_up = torch.stack([_with_rare(2 * f, d, 20, seed=e) for e in range(experts)])
    down = torch.stack([_with_rare(d, f, 10, seed=10 + e) for e in range(experts)])
    both = [(pack(gate_up, fmt, glu=True), pack(down, fmt)) for fmt in (FMT, "bf16")]
    for tokens in (1, 5, 60):
        x, made = _normal(tokens, d, seed=tokens), torch.Generator().manual_seed(tokens)
        ids = torch.stack([torch.randperm(experts, generator=made)[:k] for _ in range(tokens)])
        weights = torch.rand(tokens, k, generator=made)
        with native.forced_isa(isa):
            narrow, plain = (_same_experts(x, weights, ids, *pair) for pair in both)
        assert torch.equal(narrow, plain)


def test_experts_with_more_rows_than_are_copied_together() -> None:
    """Also of tokens that name an expert twice: more pairs than tokens."""
    d, f, tokens = 2048, 40, 150
    gate_up, down = _with_rare(2 * f, d, 20)[None], _with_rare(d, f, 10)[None]
    x, weights = _normal(tokens, d), torch.full((tokens, 2), 0.5)
    ids = torch.zeros(tokens, 2, dtype=torch.int64)
    narrow, plain = (
        _same_experts(x, weights, ids, pack(gate_up, fmt, glu=True), pack(down, fmt)) for fmt in (FMT, "bf16")
    )
    assert torch.equal(narrow, plain)


def test_too_many_exponents_are_refused_and_kept_plain() -> None:
    w = torch.stack([_normal(64, 256), _with_rare(64, 256, 2000)])
    with pytest.raises(ExponentsError, match="too many exponents for bf16-12"):
        pack(w, FMT)
    assert pack(w).format == "bf16", "the default holds anything"
    assert pack(w[0]).format == whole_format(torch.bfloat16)
    copy = plain_copy(pack(w[0], FMT))
    assert copy.format == "bf16" and torch.equal(_bits(copy)[0], w[0].float().view(torch.int32))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 140),
    st.integers(1, 90),
    st.integers(0, 255),
    st.integers(1, 40),
    st.floats(0, 0.02),
    st.integers(0, 2**31),
)
def test_any_bits_come_back_or_are_refused(
    outputs: int, inputs: int, first: int, spread: int, rare: float, seed: int
) -> None:
    """Exponents within `spread` of each other, a share of them anything at all; signs and mantissas anything."""
    made = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs)
    exponents = (first + torch.randint(0, spread, shape, generator=made)) % 256
    anywhere = torch.rand(shape, generator=made) < rare
    exponents = torch.where(anywhere, torch.randint(0, 256, shape, generator=made), exponents)
    rest = torch.randint(0, 256, shape, generator=made)
    w = ((rest & 128) << 8 | exponents << 7 | rest & 127).to(torch.int16).view(torch.bfloat16)
    try:
        packed = pack(w, FMT)
    except ExponentsError:
        assert spread > 16 or rare > 0
        return
    # A NaN may become another NaN on its way to float32.
    assert torch.equal(
        packed.dense()[0].nan_to_num(12345.0).view(torch.int32), w.float().nan_to_num(12345.0).view(torch.int32)
    )
