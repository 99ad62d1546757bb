"""AMX's kernels over emulated tiles: what the tile unit computes, to the bit, and bits that no batch changes.

The other tests of the native kernels run them too (as the ISA `amx_emulated`); here is what only tiles have to promise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_support import same_bits_whoever_computes

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.linear import linear_f32
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.packed import GROUPS, pack

pytestmark = pytest.mark.skipif(
    not native.available() or not native.can_emulate_tiles(), reason="this processor lacks the ISA around the tiles"
)
INTEGER = [fmt for fmt in GROUPS if fmt.startswith(("int", "mxfp4"))]
AROUND_A_TILE = (1, 2, 15, 16, 17, 31, 32, 33, 70)  # rows: one tile, two, and what is left over


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x)


def by_definition(x_TI: torch.Tensor, w_OI: torch.Tensor) -> np.ndarray:
    """TDPBF16PS over 32 inputs at a time: even and odd products apart (a product of two bf16 is exact in float32, so a fused sum
    rounds once), then their sum, then into the result; what is below the normal numbers is zero."""
    x, w = flushed(x_TI.float().numpy()), flushed(w_OI.float().numpy())
    pad = -x.shape[1] % 32
    x, w = np.pad(x, ((0, 0), (0, pad))), np.pad(w, ((0, 0), (0, pad)))
    out = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for first in range(0, x.shape[1], 32):
        sums = [np.zeros_like(out), np.zeros_like(out)]
        for i in range(first, first + 32):
            products = x[:, i, None].astype(np.float64) * w[None, :, i]
            sums[i % 2] = flushed((sums[i % 2] + products).astype(np.float32))
        out = flushed(out + flushed(sums[0] + sums[1]))
    return out


@pytest.mark.parametrize("inputs", [32, 64, 37, 2, 300])
@pytest.mark.parametrize("rows", [1, 16, 19])
def test_bf16_is_what_the_tile_unit_computes(rows: int, inputs: int) -> None:
    x, w = _randn(rows, inputs).bfloat16(), _randn(70, inputs, seed=1).bfloat16()
    x[0, ::3] *= 2.0**-100
    w[5] *= 2.0**-60  # products around the smallest normal number
    w[6] = 2.0**-130  # a denormal one
    with native.forced_isa(native.EMULATED):
        got = linear_f32(x, pack(w))
    assert np.array_equal(got.numpy(), by_definition(x, w))
    assert not got[:, 6].any()


@pytest.mark.parametrize("fmt", ["bf16", *INTEGER])
def test_a_row_has_the_same_bits_in_every_tile(fmt: str) -> None:
    x, packed = _randn(max(AROUND_A_TILE), 300).bfloat16(), pack(_randn(70, 300, seed=1).bfloat16(), fmt)
    with native.forced_isa(native.EMULATED):
        whole = same_bits_whoever_computes(lambda: linear_f32(x, packed))
        for rows in AROUND_A_TILE:
            assert torch.equal(linear_f32(x[:rows], packed), whole[:rows])
            assert torch.equal(linear_f32(x[-rows:], packed), whole[-rows:])


@pytest.mark.parametrize("fmt", INTEGER)
def test_integers_are_those_of_the_vector_kernels(fmt: str) -> None:
    """Whole sums are exact, so tiles for many rows and vectors for few are one function."""
    packed = pack(_randn(70, 300, seed=1).bfloat16(), fmt)
    for rows in AROUND_A_TILE:
        x = _randn(rows, 300, seed=rows).bfloat16()
        with native.forced_isa("avx512_bf16"):
            vectors = linear_f32(x, packed)
        with native.forced_isa(native.EMULATED):
            assert torch.equal(linear_f32(x, packed), vectors)


@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4-32", "mxfp4-a8"])
def test_experts_whose_tokens_lie_anywhere(fmt: str) -> None:
    """Rows of an expert are gathered, not even: tiles of copies give the bits that a token has alone."""
    tokens, experts, d, f, top_k = 60, 3, 96, 40, 2
    x = _randn(tokens, d).bfloat16()
    gate_up = pack(_randn(experts, 2 * f, d, seed=1).bfloat16() / d**0.5, fmt, glu=True)
    down = pack(_randn(experts, d, f, seed=2).bfloat16() / f**0.5, fmt)
    ids = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(3)).argsort(-1)[:, :top_k].contiguous()
    weights = torch.full((tokens, top_k), 0.5)

    def run(first: int, last: int) -> torch.Tensor:
        return moe_experts(x[first:last], weights[first:last], ids[first:last], gate_up, down, SwiGlu())

    with native.forced_isa(native.EMULATED):
        whole = same_bits_whoever_computes(lambda: run(0, tokens))
        for first, last in ((0, 1), (7, 40), (59, 60)):
            assert torch.equal(run(first, last), whole[first:last])
    if fmt != "bf16":
        with native.forced_isa("avx512_bf16"):
            assert torch.equal(run(0, tokens), whole)


def test_emulated_tiles_are_never_chosen() -> None:
    assert native.EMULATED not in native.supported_isas()
    with native.forced_isa(native.EMULATED):
        assert native.isa() == native.EMULATED
    assert native.isa() != native.EMULATED
