"""Linear, routing and the row operators in Triton against their definitions, and the packed weights they read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from products import BF16, BF16_WEIGHTS, DEVICE, error, randn, surrounded, unsummed

from ridgepoint.catalog.spec import ClampedSwiGlu, RouterSpec, SwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.add_shared import reference as add_shared_reference
from ridgepoint.kernels.add_shared import triton as add_shared
from ridgepoint.kernels.device_weight import FORMATS, fill_codes, pack_for_device, unfilled_for_device
from ridgepoint.kernels.embed import reference as embed_reference
from ridgepoint.kernels.embed import triton as embed
from ridgepoint.kernels.gemm.quantise import quantise_rows, rounded_rows
from ridgepoint.kernels.glu import reference as glu_reference
from ridgepoint.kernels.glu import triton as glu
from ridgepoint.kernels.linear import triton as linear
from ridgepoint.kernels.moe_experts.combine import summed
from ridgepoint.kernels.packed import GROUPS, choose_scales, pack
from ridgepoint.kernels.route import reference as route_reference
from ridgepoint.kernels.route import triton as route

STORED = [fmt for fmt in FORMATS if not fmt.endswith("-a8")]
# Relative rms error of rounding normal weights to nearest: what the format itself costs (and no more).
F32_SUMS = 2e-6  # of products that are exact
FP8_ACTIVATIONS = 0.04  # three bits of mantissa: 2^-5 a value, less its spread
LOSS = {
    "int8": 0.009,
    "int8-32": 0.007,
    "int8-128": 0.008,
    "int4-32": 0.1,
    "int4-128": 0.12,
    "mxfp4": 0.13,
    "fp8": 0.03,
}


@pytest.mark.parametrize("fmt", STORED)
def test_packing_costs_what_the_format_costs(fmt: str) -> None:
    w = randn(2, 40, 300)
    packed = pack_for_device(w, fmt, glu=True)
    dense = packed.dense()
    assert error(dense, w) <= LOSS[fmt]
    assert float(pack_for_device(torch.zeros(3, 40, device=DEVICE), fmt).dense().abs().max()) == 0
    if fmt == "fp8":
        by_block = packed.scales.transpose(2, 3).flatten(1, 2)  # [matrices, blocks of gate then up, groups]
        again = pack_for_device(dense, fmt, glu=True, scales=by_block)
    else:
        scales = torch.stack([choose_scales(matrix, fmt) for matrix in w])
        again = pack_for_device(dense, fmt, glu=True, scales=scales)
        if native.available():
            assert torch.equal(pack(w.cpu(), fmt, glu=True).dense(), dense.cpu()), "CPU and GPU round differently"
    assert torch.equal(again.dense(), dense), "codes are not recovered"


@pytest.mark.parametrize("fmt", STORED)
def test_codes_of_a_checkpoint_are_kept(fmt: str) -> None:
    """Any codes with any scales of the format come back as their products; 140 rows of a part are a block and a piece."""
    g, kind, group = torch.Generator().manual_seed(3), fmt.split("-")[0], GROUPS[fmt] or 300
    codes = torch.randint(
        *{"fp8": (0, 127), "mxfp4": (0, 16), "int4": (-8, 8), "int8": (-128, 128)}[kind], (280, 300), generator=g
    )
    scales = torch.randint(1, 100, (2 if fmt == "fp8" else 280, -(-300 // group)), generator=g) / 64
    if kind == "mxfp4":
        scales = 2.0 ** scales.mul(64).sub(120).floor().float()
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    else:
        values = codes.to(torch.uint8).view(torch.float8_e4m3fn).float() if kind == "fp8" else codes.float()
    if fmt == "fp8":  # gate's two blocks, then up's
        scales = torch.cat([scales.repeat_interleave(128, 0)[:140], 2 * scales.repeat_interleave(128, 0)[:140]])
    room = unfilled_for_device(fmt, 2, 280, 300, glu=True, stacked=True, device=DEVICE)
    bytes_ = codes.to(torch.uint8 if kind in ("fp8", "mxfp4") else torch.int8)
    fill_codes(room, 1, bytes_, scales)
    want = values * scales.repeat_interleave(group, 1)[:, :300]
    assert torch.equal(room.dense()[1].cpu(), want)
    with pytest.raises(ConfigError, match="do not fill"):
        fill_codes(room, 1, bytes_[:, 1:], scales)
    if fmt == "fp8":
        scales[1] *= 3
        with pytest.raises(ConfigError, match="within a block"):
            fill_codes(room, 1, bytes_, scales)


def test_known_codes() -> None:
    """Every mxfp4 and int4 code, and fp8 values torch knows, through packing and through the kernel."""
    eye = torch.eye(32).bfloat16().to(DEVICE)
    fp4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 6] * 2)[None] * 2.0**-5
    int4 = torch.arange(-8, 8).float().repeat(2)[None] * 0.375
    fp8 = torch.arange(64, 96, dtype=torch.uint8).view(torch.float8_e4m3fn).float()[None]
    for fmt, values, scale in (("mxfp4", fp4, 2.0**-5), ("int4-32", int4, 0.375), ("fp8", fp8 * 3, 3.0)):
        packed = pack_for_device(values.to(DEVICE), fmt, scales=torch.tensor([[scale]], device=DEVICE))
        assert torch.equal(packed.dense()[0].cpu(), values), fmt
        assert torch.equal(linear.linear_f32(eye, packed).T.cpu(), values.bfloat16().float()), fmt


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int3' has no GPU kernel; allowed: fp8"):
        pack_for_device(randn(4, 32), "int3")
    with pytest.raises(ConfigError, match="powers of two"):
        pack_for_device(torch.full((1, 32), 100.0, device=DEVICE), "mxfp4")
    with pytest.raises(ConfigError, match="cannot take"):
        linear.linear(randn(2, 64), pack_for_device(randn(4, 32), "int8"))


@pytest.mark.parametrize("fmt", STORED)
def test_linear(fmt: str) -> None:
    for rows, outputs, inputs in ((0, 8, 16), (1, 70, 256), (17, 33, 300)):
        x, w, bias = surrounded(randn(rows, inputs)), randn(outputs, inputs, seed=1), randn(outputs, seed=2)
        packed = pack_for_device(w, fmt)
        want = x.double() @ packed.dense()[0].double().T + bias.double()
        assert error(linear.linear(x, packed, bias), want) <= BF16_WEIGHTS
        got = linear.linear_f32(x, packed, bias)
        assert got.dtype == torch.float32 and error(got, want) <= BF16_WEIGHTS


@pytest.mark.parametrize("rows", [1, 8, 21])
def test_activations_are_rounded_row_by_row(rows: int) -> None:
    """Codes lie as those of weights do; a row of zeros, and one a thousand times larger than the others, are their own."""
    x = surrounded(randn(rows, 300))
    x[0], x[-1] = 0, 1000 * x[-1]
    codes, scales = quantise_rows(x)
    assert codes.shape == (rows, 384) and scales.shape == (3, rows)
    in_order = (
        codes.float().view(rows, 3, 4, 8, 2, 2).permute(0, 1, 3, 4, 2, 5).reshape(rows, 3, 128)
    )  # q s h b: s h q b
    got = (in_order * scales.T[:, :, None]).flatten(1)
    assert torch.equal(got[:, :300], rounded_rows(x)) and int(got[:, 300:].abs().sum()) == 0
    largest = x.float().abs().amax()
    assert float((got[:, :300] - x.float()).abs().max()) <= float(largest) / 16


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 8, 16), (1, 70, 256), (17, 200, 300), (150, 33, 160)])
def test_fp8_codes_meet_fp8_codes(rows: int, outputs: int, inputs: int) -> None:
    """Against the numbers that both sides stand for; against the plain activations the error is what rounding costs."""
    x, w, bias = surrounded(randn(rows, inputs)), randn(outputs, inputs, seed=1), randn(outputs, seed=2)
    packed, plain = pack_for_device(w, "fp8-a8"), pack_for_device(w, "fp8")
    assert torch.equal(packed.codes, plain.codes) and torch.equal(packed.scales, plain.scales), "the same weights"
    dense = packed.dense()[0].double()
    want = rounded_rows(x).double() @ dense.T + bias.double()
    got = linear.linear_f32(x, packed, bias)
    assert got.dtype == torch.float32 and error(got, want) <= F32_SUMS
    assert error(linear.linear(x, packed, bias), want) <= BF16
    assert rows == 0 or F32_SUMS < error(got, x.double() @ dense.T + bias.double()) <= FP8_ACTIVATIONS


def test_a_dense_head_keeps_its_float32_sums() -> None:
    x, w, bias = randn(5, 200), randn(77, 200, seed=1), randn(77, seed=2)
    want = x.double() @ w.double().T + bias.double()
    assert error(linear.linear_f32(x, w, bias), want) < 1e-6
    assert error(linear.linear_f32(x, w.float(), bias.float()), want) < 1e-6
    assert error(linear.linear(x, w, bias), want) <= BF16
    heads = randn(3, 20, 40, seed=3)
    got = linear.linear_heads(x.view(5, 5, 40)[:, :3], heads)
    assert error(got, torch.einsum("thi,hoi->tho", x.view(5, 5, 40)[:, :3].double(), heads.double())) <= BF16


ROUTERS = st.builds(
    RouterSpec,
    scores=st.sampled_from(["softmax", "sigmoid", "softmax_topk", "sparsemixer"]),
    normalise=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    bias=st.just(False),
    correction_bias=st.booleans(),
    num_groups=st.sampled_from([1, 2, 4]),
    topk_groups=st.integers(1, 4),
    group_score=st.sampled_from(["max", "top2_sum"]),
    jitter_eps=st.just(0.01),
)


@settings(max_examples=40, deadline=None)
@given(
    router=ROUTERS, top_k=st.integers(1, 12), per_group=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99),
    ties=st.booleans(),
)  # fmt: skip
def test_route(router: RouterSpec, top_k: int, per_group: int, seed: int, ties: bool) -> None:
    num = per_group * router.num_groups
    if router.topk_groups > router.num_groups or top_k > per_group * router.topk_groups:
        return
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, num, generator=g)
    ties = ties and router.scores != "sparsemixer"  # which divides by a logit of zero
    logits = (logits.round() if ties else logits).to(DEVICE)
    correction = torch.randn(num, generator=g).to(DEVICE) if router.correction_bias else None
    weights, ids = route.route(logits, correction, router, top_k)
    want_weights, want_ids = route_reference.route(logits, correction, router, top_k)
    assert ids.dtype == torch.int64 and torch.equal(ids, want_ids)
    assert torch.allclose(weights, want_weights, rtol=2e-6, atol=1e-7)


def test_no_logit_makes_an_id_that_does_not_exist() -> None:
    """NaN and infinities: whatever is chosen, it is K different experts."""
    router = RouterSpec(
        scores="softmax", normalise=True, scale=1.0, bias=False, correction_bias=False, num_groups=2, topk_groups=1,
        group_score="top2_sum", jitter_eps=None,
    )  # fmt: skip
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    logits[0], logits[1, 3], logits[2], logits[3, ::2] = float("nan"), float("nan"), float("-inf"), float("inf")
    _, ids = route.route(logits.to(DEVICE), None, router, 6)
    assert all(len(set(row)) == 6 and set(row) <= set(range(12)) for row in ids.tolist())


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_row_operators(rows: int) -> None:
    x, other, gate = surrounded(randn(rows, 40)), randn(rows, 40, seed=1), randn(rows, 1, seed=2)
    for activation in (SwiGlu(), ClampedSwiGlu(alpha=1.702, limit=0.7)):
        assert error(glu.glu(x, activation), glu_reference.glu(x.double(), activation)) <= BF16
    for logit in (None, gate):
        want = add_shared_reference.add_shared(x.double(), other.double(), None if logit is None else logit.double())
        assert error(add_shared.add_shared(x.contiguous(), other, logit), want) <= BF16
        assert error(add_shared.add_shared(x, other, logit), want) <= BF16
        for ordered in (True, False):
            left, sums = unsummed(rows, 40, 3, ordered)
            got = add_shared.add_shared(left, other, logit)
            assert torch.equal(got, add_shared.add_shared(summed(left), other, logit))
            want = add_shared_reference.add_shared(sums, other.double(), None if logit is None else logit.double())
            assert error(got, want) <= BF16
    ids = torch.arange(rows, device=DEVICE) % 9
    table = randn(9, 40, seed=3)
    got = embed.embed(ids, table, 12.0, torch.bfloat16)
    assert error(got, embed_reference.embed(ids, table.double(), 12.0, torch.float64)) <= BF16
