"""Native routed experts under any routing: a token's bits are those it has alone, whoever else is routed where.

Experts of few rows are multiplied between the tiles of those of many, ahead of their turn in the sum; which ones depends on
everybody's routes, and the sums must not show it.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.packed import Packed, pack

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.load_error()}")

TOKENS, WIDTH, INNER, EXPERTS, TOP_K = 300, 128, 64, 40, 4
FORMATS = ("bf16", "bf16-12", "int8-128-a8", "int4-32-a8")


@cache
def _experts(fmt: str) -> tuple[Packed, Packed, torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    gate_up = torch.randn(EXPERTS, 2 * INNER, WIDTH, generator=made).mul_(0.1).bfloat16()
    down = torch.randn(EXPERTS, WIDTH, INNER, generator=made).mul_(0.1).bfloat16()
    # Large addends that cancel: what is left of the small ones shows their order.
    bias = torch.randint(-1, 2, (EXPERTS, WIDTH), generator=made) * 2.0**20
    x = torch.randn(TOKENS, WIDTH, generator=made).bfloat16()
    weights = torch.ones(TOKENS, TOP_K)
    return pack(gate_up, fmt, glu=True), pack(down, fmt), bias, x, weights


@st.composite
def routes(draw: st.DrawFn) -> torch.Tensor:
    """Tokens choose experts in proportion to weights drawn for these: some get nearly all, some a few, some none."""
    tokens = draw(st.sampled_from([2, 13, 40, 90, 300]))
    liked = draw(st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0, 30.0]), min_size=EXPERTS, max_size=EXPERTS))
    made = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    return torch.multinomial((torch.tensor(liked) + 1e-6).expand(tokens, -1), TOP_K, generator=made)


@settings(max_examples=40, deadline=None)
@given(
    ids=routes(),
    isa=st.sampled_from(native.supported_isas() if native.available() else [""]),
    fmt=st.sampled_from(FORMATS),
    threads=st.integers(1, 3),
    picked=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=3, max_size=3),
)
def test_a_token_alone_has_the_same_bits(
    ids: torch.Tensor, isa: str, fmt: str, threads: int, picked: list[float]
) -> None:
    gate_up, down, bias, x, weights = _experts(fmt)

    def run(rows: slice) -> torch.Tensor:
        return moe_experts(x[rows], weights[rows], ids[rows], gate_up, down, SwiGlu(), None, bias)

    before = native.num_threads()
    native.set_num_threads(threads)
    try:
        with native.forced_isa(isa):
            whole = run(slice(0, len(ids)))
            for t in {int(at * len(ids)) for at in picked}:
                assert torch.equal(run(slice(t, t + 1)), whole[t : t + 1]), f"token {t}"
    finally:
        native.set_num_threads(before)
