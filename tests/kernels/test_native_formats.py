"""Low-precision weights: codes that survive packing, products as exact as an unfused one, bits of the row alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_support import FLOAT32_ERROR, ISAS, SLACK, needs_native, rms, same_bits_whoever_computes, surrounded

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.linear import linear, linear_f32
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.packed import (
    A8,
    GROUPS,
    WHOLE,
    Packed,
    choose_scales,
    pack,
    pack_codes,
    round_activations,
    unfilled,
)
from ridgepoint.models.codes import Codes, num_groups

pytestmark = needs_native
FORMATS = [fmt for fmt in GROUPS if fmt not in ("f32", "bf16")]
CODED = [fmt for fmt in FORMATS if fmt not in WHOLE]
A8_FORMATS = [fmt for fmt in FORMATS if fmt.endswith(A8)]
# Relative rms error of rounding normal weights to nearest: what the format itself costs (and no more).
LOSS = {
    "int8": 0.009,
    "int8-32": 0.007,
    "int8-128": 0.008,
    "int4-32": 0.1,
    "int4-128": 0.12,
    "mxfp4": 0.13,
    "fp8": 0.03,
}


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", CODED)
def test_rounding_costs_what_the_format_costs(fmt: str) -> None:
    w = _randn(100, 300).bfloat16()
    packed = pack(surrounded(w), fmt)
    dense = packed.dense()[0]
    assert rms(dense - w.float()) <= LOSS[fmt.removesuffix(A8)] * rms(w)
    assert torch.equal(pack(dense, fmt, scales=choose_scales(w, fmt)).dense()[0], dense), "codes are not recovered"
    assert rms(pack(torch.zeros(3, 40), fmt).dense()) == 0


def test_known_codes() -> None:
    """Every mxfp4 and int4 code, and fp8 values torch knows, come back exactly."""
    fp4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6] * 2)[None] * 2.0**-5
    assert torch.equal(pack(fp4, "mxfp4", scales=torch.tensor([[2.0**-5]])).dense()[0], fp4)
    int4 = torch.arange(-8, 8).float().repeat(2)[None] * 0.375
    assert torch.equal(pack(int4, "int4-32", scales=torch.tensor([[0.375]])).dense()[0], int4)
    finite = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    finite = finite[~finite.isnan()][:128][None]
    for values in (finite, -finite):
        assert torch.equal(pack(values * 3, "fp8", scales=torch.tensor([[3.0]])).dense()[0], values * 3)
    ours = pack(_randn(8, 128) * 30, "fp8", scales=torch.ones(8, 1)).dense()[0]
    assert torch.equal(ours, (_randn(8, 128) * 30).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_products_are_as_exact_as_unfused_ones(isa: str, fmt: str) -> None:
    with native.forced_isa(isa):
        for rows, outputs, inputs in ((1, 64, 128), (2, 70, 256), (7, 100, 300), (5, 65, 37)):
            x, w = _randn(rows, inputs).bfloat16(), _randn(outputs, inputs, seed=1).bfloat16()
            x[:, inputs // 3] *= 300  # an outlier, as activations have them
            packed = pack(w, fmt)
            dense = packed.dense()[0]
            seen = round_activations(x, fmt)
            truth = seen.double() @ dense.double().T
            unfused = x @ dense.bfloat16().T if fmt == "fp8" else (seen @ dense.T).bfloat16()
            assert rms(linear(surrounded(x), packed).double() - truth) <= SLACK * rms(unfused.double() - truth)
            assert rms(linear_f32(x, packed).double() - truth) <= 2.0**-10 * rms(truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_experts_in_every_format(isa: str, fmt: str) -> None:
    tokens, d, f, experts, k = 13, 96, 72, 5, 2
    x, weights = _randn(tokens, d).bfloat16(), _randn(tokens, k, seed=3).abs()
    ids = torch.stack([torch.randperm(experts, generator=torch.Generator().manual_seed(t))[:k] for t in range(tokens)])
    gate_up = pack(_randn(experts, 2 * f, d, seed=1).bfloat16() / d**0.5, fmt, glu=True)
    down = pack(_randn(experts, d, f, seed=2).bfloat16() / f**0.5, fmt)
    with native.forced_isa(isa):
        whole = same_bits_whoever_computes(lambda: moe_experts(x, weights, ids, gate_up, down, SwiGlu()))
        for t in (0, 7):
            row = slice(t, t + 1)
            assert torch.equal(moe_experts(x[row], weights[row], ids[row], gate_up, down, SwiGlu()), whole[row])
    truth, unfused = _experts(x, weights, ids, gate_up, down, fmt)
    assert rms(whole.double() - truth) <= SLACK * rms(unfused.double() - truth)


# tokens, width, hidden width, experts, experts per token; None routes everything to one expert.
CORNERS = {
    "empty_experts": (3, 64, 32, 9, 2),
    "one_expert_takes_all": (11, 96, 40, 3, None),
    "k_is_1": (7, 33, 70, 4, 1),
    "k_is_e": (5, 130, 17, 3, 3),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_corners_of_routing(isa: str, fmt: str) -> None:
    for tokens, d, f, experts, k in CORNERS.values():
        x, weights = surrounded(_randn(tokens, d).bfloat16()), _randn(tokens, k or 1, seed=3).abs()
        made = torch.Generator().manual_seed(d)
        ids = torch.stack([torch.randperm(experts, generator=made)[: k or 1] for _ in range(tokens)])
        if k is None:
            ids[:] = 1
        gate_up = pack(_randn(experts, 2 * f, d, seed=1).bfloat16() / d**0.5, fmt, glu=True)
        down = pack(_randn(experts, d, f, seed=2).bfloat16() / f**0.5, fmt)
        truth, unfused = _experts(x, weights, ids, gate_up, down, fmt)
        for packed in (gate_up, down):  # experts nobody chose may hold anything, NaN scales too
            for e in set(range(experts)) - set(ids.flatten().tolist()):
                packed.data.reshape(experts, -1)[e] = 0xFF
        with native.forced_isa(isa):
            whole = moe_experts(x, weights, ids, gate_up, down, SwiGlu())
            one = slice(tokens - 1, tokens)
            assert torch.equal(moe_experts(x[one], weights[one], ids[one], gate_up, down, SwiGlu()), whole[one])
        assert rms(whole.double() - truth) <= SLACK * rms(unfused.double() - truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_bits_depend_on_the_row_alone(isa: str, fmt: str) -> None:
    """Tiles of every height, also where the last group of inputs is not whole."""
    x, packed = _randn(17, 300).bfloat16(), pack(_randn(70, 300, seed=1).bfloat16(), fmt)
    with native.forced_isa(isa):
        whole = same_bits_whoever_computes(lambda: linear(x, packed))
        for rows in range(1, 10):
            assert torch.equal(linear(x[17 - rows :], packed), whole[17 - rows :])


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.startswith(("int", "mxfp4"))])
def test_integer_codes_give_the_same_bits_under_every_isa(fmt: str) -> None:
    """Whole sums are exact, by 8-bit dot products as by 16-bit pairs, and the float arithmetic after them is one; but for the
    portable ISA, which multiplies and adds in two roundings."""
    x, packed = _randn(17, 300).bfloat16(), pack(_randn(70, 300, seed=1).bfloat16(), fmt)
    fused = [isa for isa in ISAS if isa != "portable"]
    if len(fused) < 2:
        pytest.skip("one ISA alone has nothing to agree with")
    products = []
    for isa in fused:
        with native.forced_isa(isa):
            products.append(linear_f32(x, packed))
    assert all(torch.equal(product, products[0]) for product in products)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", A8_FORMATS)
def test_8_bit_activations_are_what_they_are_said_to_be(isa: str, fmt: str) -> None:
    """Against the definition: whole numbers up to 127 of each group's largest, and exact sums of products."""
    x, w = _randn(6, 300).bfloat16(), _randn(70, 300, seed=1).bfloat16()
    x[1] = 0
    x[2, :40] *= 1e-33  # too small to have a scale
    packed = pack(w, fmt)
    seen = round_activations(x, fmt)
    assert 1e-3 * rms(x) < rms(seen - x.float()) < 1e-2 * rms(x)
    truth = seen.double() @ packed.dense()[0].double().T
    with native.forced_isa(isa):
        assert rms(linear_f32(x, packed).double() - truth) <= FLOAT32_ERROR * rms(truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_what_is_not_finite_shows_in_its_row_alone(isa: str, fmt: str) -> None:
    x, packed = _randn(6, 300).bfloat16(), pack(_randn(70, 300, seed=1).bfloat16(), fmt)
    with native.forced_isa(isa):
        clean = linear_f32(x, packed)
        for poison in (float("nan"), float("inf")):
            x[3, 299] = poison
            got = linear_f32(x, packed)
            assert not got[3].isfinite().any()
            assert torch.equal(got[[0, 1, 2, 4, 5]], clean[[0, 1, 2, 4, 5]])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("fmt", "extremes"), [("int8", (-128, 127)), ("int8-128", (-128, 127)), ("int4-128", (-8, 7))])
@pytest.mark.parametrize("bits", ["", A8])
def test_the_largest_sums_fit(isa: str, fmt: str, extremes: tuple[int, int], bits: str) -> None:
    """Every activation and every code at its limit: what would overflow or saturate would be far off."""
    outputs, inputs = 66, 256
    packed, scales = unfilled(fmt + bits, 1, outputs, inputs), torch.ones(outputs, num_groups(inputs, GROUPS[fmt]))
    codes = torch.tensor(extremes, dtype=torch.int8).repeat(outputs // 2)[:, None].expand(outputs, inputs)
    pack_codes(packed, 0, codes.contiguous(), scales)
    x = torch.full((7, inputs), 3.0).bfloat16()
    x[1::2] *= -1
    x[6, ::2] *= -1
    truth = x.double() @ codes.double().T
    with native.forced_isa(isa):
        assert float((linear_f32(x, packed).double() - truth).abs().max()) <= FLOAT32_ERROR * float(truth.abs().max())


def test_only_integer_codes_take_8_bit_activations() -> None:
    for fmt in ("bf16-a8", "fp8-a8", "f32-a8"):
        with pytest.raises(ConfigError, match="allowed"):
            pack(_randn(4, 128), fmt)


def _experts(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, gate_up: Packed, down: Packed, fmt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 and unfused bf16 results over dequantised weights, with the activations that `fmt` multiplies."""
    tokens, f = x.shape[0], down.inputs
    w_gu, w_dn = gate_up.dense(), down.dense()
    truth, unfused = torch.zeros(tokens, x.shape[1]).double(), torch.zeros(tokens, x.shape[1]).bfloat16()
    seen = round_activations(x, fmt)
    for t, j in itertools.product(range(tokens), range(ids.shape[1])):
        e = ids[t, j]
        g = w_gu[e].double() @ seen[t].double()
        h = torch.nn.functional.silu(g[:f]) * g[f:]
        if fmt.endswith(A8):  # of what the experts keep between their two products, which is bf16
            h = round_activations(h.bfloat16()[None], fmt)[0]
        truth[t] += weights[t, j].double() * (w_dn[e].double() @ h.double())
        g = (w_gu[e] @ seen[t]).bfloat16()
        h = round_activations((torch.nn.functional.silu(g[:f]) * g[f:])[None], fmt)[0]
        unfused[t] += weights[t, j].bfloat16() * (w_dn[e] @ h).bfloat16()
    return truth, unfused


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="int3"):
        pack(_randn(4, 32), "int3")


@pytest.mark.parametrize("fmt", CODED)
@pytest.mark.parametrize("glu", [False, True])
def test_codes_are_packed_as_they_are(fmt: str, glu: bool) -> None:
    """Every code of the format, at widths no tile and no group divides, means what it meant before packing."""
    kind = {"int8": "int8", "int4": "int4", "mxfp4": "fp4", "fp8": "fp8"}[fmt.split("-")[0]]
    low, high, dtype = {"int8": (-128, 128, torch.int8), "int4": (-8, 8, torch.int8), "fp4": (0, 16, torch.uint8),
                        "fp8": (0, 127, torch.uint8)}[kind]  # fmt: skip
    outputs, inputs, group = 70, 300, GROUPS[fmt]
    generator = torch.Generator().manual_seed(4)
    packed = unfilled(fmt, 2, outputs, inputs, glu=glu)
    for index in range(2):
        codes = torch.randint(low, high, (outputs, inputs), generator=generator).to(dtype)
        shape = (outputs, num_groups(inputs, group))
        scales = torch.exp2(torch.randint(-6, 7, shape, generator=generator).float())
        pack_codes(packed, index, codes, scales)
        stored = Codes(kind=kind, group=group, codes_OI=codes, scales_ON=scales)
        assert torch.equal(packed.dense()[index], stored.dense())


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"codes \(4, 30\) with scales \(4, 1\) do not fill"):
        pack_codes(unfilled("int4-32", 1, 4, 32), 0, torch.zeros(4, 30, dtype=torch.int8), torch.ones(4, 1))
    with pytest.raises(ConfigError, match="bf16 does not take codes"):
        pack_codes(unfilled("bf16", 1, 4, 32), 0, torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 1))
