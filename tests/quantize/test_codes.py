"""Codes and bits: round trips, and roundings that are nearest by search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.kernels import native
from ridgepoint.kernels.packed import choose_scales, pack
from ridgepoint.models import codes as coded
from ridgepoint.models.codes import FP4_VALUES, Codes
from ridgepoint.quantize.formats import FORMATS
from ridgepoint.quantize.rounding import largest_scales, nearest_codes, round_to_nearest

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 140))


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, bits=st.sampled_from([4, 8]), seed=st.integers(0, 1000))
def test_words_round_trip(size: tuple[int, int], bits: int, seed: int) -> None:
    half = 1 << bits - 1
    codes = torch.randint(-half, half, size, generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    words = coded.to_int32(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (size[0], -(-size[1] * bits // 32))
    assert torch.equal(coded.from_int32(words, bits, size[1]), codes)
    first = int(words[0, 0]) & (2 * half - 1)
    assert first - half == int(codes[0, 0]), "the first input lies in the lowest bits"


@settings(max_examples=30, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000))
def test_nibbles_and_exponents_round_trip(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (size[0], 2 * size[1]), generator=generator).to(torch.uint8)
    assert torch.equal(coded.from_nibbles(coded.to_nibbles(codes)), codes)
    raw = torch.randint(1, 255, size, generator=generator).to(torch.uint8)
    assert torch.equal(coded.e8m0_bytes(coded.e8m0_values(raw)), raw)


@settings(max_examples=40, deadline=None)
@given(size=SIZES, name=st.sampled_from(list(FORMATS)), seed=st.integers(0, 1000))
def test_no_code_is_nearer(size: tuple[int, int], name: str, seed: int) -> None:
    """Every weight against every code of the format, and a second rounding changes nothing."""
    fmt, w = FORMATS[name], random(*size, seed=seed)
    codes = round_to_nearest(w, fmt)
    table = {
        "int8": torch.arange(-127.0, 128), "int4": torch.arange(-8.0, 8), "fp4": torch.tensor(FP4_VALUES),
        "fp8": torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float(),
    }[fmt.kind]  # fmt: skip
    table = table[~table.isnan()]
    wide = coded.scale_groups(torch.ones(size), codes.scales_ON, fmt.group)
    distance = (w[..., None] - wide[..., None] * table).abs().amin(-1)
    assert torch.allclose((codes.dense() - w).abs(), distance, rtol=1e-5, atol=1e-7)
    again = nearest_codes(codes.values(), fmt.kind)
    assert torch.equal(Codes(kind=fmt.kind, group=fmt.group, codes_OI=again, scales_ON=codes.scales_ON).dense(), codes.dense())  # fmt: skip


def test_ties_go_to_the_even_code() -> None:
    halfway = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]])
    assert nearest_codes(halfway, "fp4").tolist() == [[0, 2, 2, 4, 4, 6, 6]]
    assert nearest_codes(-halfway, "fp4").tolist() == [[8, 10, 10, 12, 12, 14, 14]]
    assert nearest_codes(torch.tensor([[0.5, 1.5, -2.5]]), "int4").tolist() == [[0, 2, -2]]


def test_a_matrix_of_zeros_stays_zero() -> None:
    for fmt in FORMATS.values():
        assert torch.equal(round_to_nearest(torch.zeros(3, 70), fmt).dense(), torch.zeros(3, 70))


@pytest.mark.skipif(not native.available(), reason="no native library")
@pytest.mark.parametrize(("name", "kernels"), [("int4-g32", "int4-32"), ("int4-g128", "int4-128"), ("mxfp4", "mxfp4")])
def test_a_checkpoint_is_rounded_as_the_kernels_would(name: str, kernels: str) -> None:
    w = random(70, 300, seed=3)
    assert torch.equal(largest_scales(w, FORMATS[name]), choose_scales(w, kernels))
    assert torch.equal(pack(w, kernels).dense()[0], round_to_nearest(w, FORMATS[name]).dense())
