"""Every op's fast path against its reference, on shapes that break tiles and routings that break balance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.catalog.spec import ClampedSwiGlu, RouterSpec, SwiGlu
from ridgepoint.kernels.add_shared import add_shared
from ridgepoint.kernels.clip import clip
from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.glu import glu
from ridgepoint.kernels.linear import linear, linear_f32, linear_heads
from ridgepoint.kernels.moe_experts import moe_experts
from ridgepoint.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from ridgepoint.kernels.rope import rope, rope_tables
from ridgepoint.kernels.route import route
from ridgepoint.kernels.scale import scale

# Float32 paths differ by the order of sums alone; bfloat16 ones round intermediates that the reference keeps wide.
RTOL = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = [torch.float32, torch.bfloat16]
CLAMPED = ClampedSwiGlu(alpha=1.702, limit=1.0)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agree(function, *args, dtype: torch.dtype = torch.float32) -> None:
    """Both paths, compared by the largest difference relative to the largest value."""
    got = function(*args)
    with forced("reference"):
        want = function(*args)
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            assert float((a.float() - b.float()).abs().max()) <= RTOL[dtype] * max(1.0, float(b.float().abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_row_ops(rows: int, dtype: torch.dtype) -> None:
    g = gen(rows)
    x, delta = (torch.randn(rows, 40, generator=g).to(dtype) for _ in range(2))
    w, b = (torch.randn(40, generator=g).to(dtype) for _ in range(2))
    agree(rms_norm, x, w, 1e-6, dtype=dtype)
    agree(layer_norm, x, w, b, 1e-5, dtype=dtype)
    agree(add_rms_norm, x, delta, 0.3, w, 1e-6, dtype=dtype)
    agree(add_layer_norm, x, delta, 1.0, w, b, 1e-5, dtype=dtype)
    agree(clip, x, 0.5, dtype=dtype)
    agree(scale, x, 0.3, dtype=dtype)
    agree(add_shared, x, delta, None, dtype=dtype)
    agree(add_shared, x, delta, torch.randn(rows, 1, generator=g).to(dtype), dtype=dtype)
    agree(glu, x, SwiGlu(), dtype=dtype)
    agree(glu, x, CLAMPED, dtype=dtype)
    agree(linear, x, torch.randn(13, 40, generator=g).to(dtype), None, dtype=dtype)
    agree(linear, x, torch.randn(13, 40, generator=g), torch.randn(13, generator=g), dtype=dtype)
    agree(linear_f32, x, torch.randn(13, 40, generator=g), torch.randn(13, generator=g), dtype=dtype)
    agree(linear_f32, x, torch.randn(13, 40, generator=g).to(dtype), None, dtype=dtype)
    agree(linear_heads, x.view(rows, 5, 8), torch.randn(5, 11, 8, generator=g).to(dtype), dtype=dtype)
    ids = torch.randint(0, 9, (rows,), generator=g)
    agree(embed, ids, torch.randn(9, 6, generator=g), 12.0, dtype, dtype=dtype)


def test_clipping_hands_a_nan_through() -> None:
    x = torch.tensor([[1.0, float("nan"), -3.0, float("inf")] * 5])
    assert torch.equal(clip(x, 2.0).isnan(), x.isnan())
    assert clip(x, 2.0)[0, [0, 2, 3]].tolist() == [1.0, -2.0, 2.0]


def test_norms_read_strided_rows() -> None:
    wide = torch.randn(6, 96, generator=gen(0))
    agree(rms_norm, wide[:, 32:64], torch.randn(32), 1e-6)
    agree(rms_norm, wide[:, 32:64].unflatten(-1, (4, 8)), torch.randn(8), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [2, 10, 16])
def test_rope(rotary: int, interleaved: bool, dtype: torch.dtype) -> None:
    qkv = torch.randn(5, 3 * 16 + 7, generator=gen(1)).to(dtype)
    x = qkv[:, :48].unflatten(-1, (3, 16))  # a strided slice, as the fused projection gives
    cos, sin = rope_tables(torch.tensor([0, 1, 5, 1000, 7]), torch.rand(rotary // 2, generator=gen(2)), 1.2)
    agree(rope, x, cos, sin, interleaved, dtype=dtype)


ROUTERS = st.builds(
    RouterSpec,
    scores=st.sampled_from(["softmax", "sigmoid", "softmax_topk"]),
    normalise=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    bias=st.just(False),
    correction_bias=st.booleans(),
    num_groups=st.sampled_from([1, 2, 4]),
    topk_groups=st.integers(1, 4),
    group_score=st.sampled_from(["max", "top2_sum"]),
    jitter_eps=st.none(),
)


PLAIN_ROUTER = RouterSpec(
    scores="sigmoid",
    normalise=False,
    scale=1.0,
    bias=False,
    correction_bias=False,
    num_groups=1,
    topk_groups=1,
    group_score="max",
    jitter_eps=None,
)


@settings(max_examples=60, deadline=None)
@given(router=ROUTERS, top_k=st.integers(1, 8), rows=st.integers(0, 9), seed=st.integers(0, 99), ties=st.booleans())
def test_route(router: RouterSpec, top_k: int, rows: int, seed: int, ties: bool) -> None:
    if router.topk_groups > router.num_groups or top_k > 8 // router.num_groups * router.topk_groups:
        return
    logits = torch.randn(rows, 8, generator=gen(seed))
    if ties:
        logits = logits.round()
    correction = torch.randn(8, generator=gen(seed + 1)) if router.correction_bias else None
    agree(route, logits, correction, router, top_k)


def test_groups_whose_sums_are_equal_in_float32_go_to_the_lower() -> None:
    router = replace(PLAIN_ROUTER, num_groups=2, group_score="top2_sum")
    logits = torch.tensor([[0.0, 0.0, -2.0, 0.0, -2.0, 1.0, -1.0, -1.0]])  # 0.5 + 0.5; 0.73105860 + 0.26894143
    assert route(logits, None, router, 2)[1].tolist() == [[0, 1]]
    agree(route, logits, None, router, 2)


@settings(max_examples=25, deadline=None)
@given(top_k=st.integers(1, 3), rows=st.integers(0, 9), seed=st.integers(0, 99), eps=st.sampled_from([0.0, 0.05, 0.5]))
def test_route_by_sparse_mixer(top_k: int, rows: int, seed: int, eps: float) -> None:
    router = replace(PLAIN_ROUTER, scores="sparsemixer", jitter_eps=eps)
    agree(route, torch.randn(rows, 8, generator=gen(seed)), None, router, top_k)


def experts(seed: int, num_experts: int, d: int, f: int, bias: bool, dtype: torch.dtype) -> tuple:
    g = gen(seed)
    shapes = [(num_experts, 2 * f, d), (num_experts, d, f), (num_experts, 2 * f), (num_experts, d)]
    w_gate_up, w_down, b_gate_up, b_down = ((torch.randn(s, generator=g) * s[-1] ** -0.5).to(dtype) for s in shapes)
    return w_gate_up, w_down, (b_gate_up if bias else None), (b_down if bias else None)


def routing(seed: int, rows: int, num_experts: int, top_k: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    g = gen(seed)
    if kind == "one":  # every token on the same experts, all others empty
        ids = torch.arange(num_experts)[-top_k:].expand(rows, top_k).contiguous()
    else:
        ids = torch.rand(rows, num_experts, generator=g).argsort(-1)[:, :top_k].contiguous()
    return torch.rand(rows, top_k, generator=g), ids


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "one"])
@pytest.mark.parametrize("top_k", [1, 3, 6])  # 6 is every expert
@pytest.mark.parametrize("rows", [0, 1, 2, 33])
def test_moe_experts(rows: int, top_k: int, kind: str, dtype: torch.dtype) -> None:
    for d, f, activation, bias in ((24, 10, SwiGlu(), False), (40, 17, CLAMPED, True)):
        x = torch.randn(rows, d, generator=gen(5)).to(dtype)
        weights, ids = routing(rows, rows, 6, top_k, kind)
        w_gate_up, w_down, b_gate_up, b_down = experts(7, 6, d, f, bias, dtype)
        agree(moe_experts, x, weights, ids, w_gate_up, w_down, activation, b_gate_up, b_down, dtype=dtype)


@pytest.mark.parametrize("activation", [SwiGlu(), CLAMPED])
@pytest.mark.parametrize("kind", ["random", "one"])
def test_moe_experts_gradients(kind: str, activation: SwiGlu | ClampedSwiGlu) -> None:
    weights, ids = routing(1, 19, 6, 2, kind)
    leaves = [torch.randn(19, 12, generator=gen(2)), weights, *experts(3, 6, 12, 8, True, torch.float32)]

    def gradients() -> list[torch.Tensor]:
        x, w, gate_up, down, b_gate_up, b_down = fresh = [leaf.clone().requires_grad_() for leaf in leaves]
        y = moe_experts(x, w, ids, gate_up, down, activation, b_gate_up, b_down)
        (y * torch.arange(12)).sum().backward()
        return [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in fresh]

    fast = gradients()
    with forced("reference"):
        slow = gradients()
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_wider_weights_are_cast_and_get_gradients() -> None:
    """Training keeps float32 weights and computes in bfloat16."""
    weights, ids = routing(1, 5, 6, 2, "random")
    w_gate_up, w_down, _, _ = experts(3, 6, 12, 8, False, torch.float32)
    w_gate_up.requires_grad_()
    x = torch.randn(5, 12, generator=gen(2)).bfloat16()
    y = moe_experts(x, weights, ids, w_gate_up, w_down, SwiGlu())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert w_gate_up.grad is not None and w_gate_up.grad.dtype == torch.float32
