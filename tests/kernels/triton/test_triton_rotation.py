"""Norms and rotation in Triton against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from products import unsummed

from ridgepoint.kernels.moe_experts.combine import summed
from ridgepoint.kernels.norm import cpu as norm_cpu
from ridgepoint.kernels.norm import reference as norm_reference
from ridgepoint.kernels.norm import triton as norm_path
from ridgepoint.kernels.paged_attention import triton as paged
from ridgepoint.kernels.rope import reference as rope_reference
from ridgepoint.kernels.rope import triton as rope_path
from ridgepoint.kernels.rope.cpu import rope_tables

RTOL = {torch.float32: 2e-6, torch.bfloat16: 2**-7}  # float32 sums in another order; the last bit of bf16, twice
DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def agree(path: ModuleType, reference: ModuleType, name: str, *args: object, dtype: torch.dtype) -> None:
    got, want = (getattr(module, name)(*args) for module in (path, reference))
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            assert float((a.float() - b.float()).abs().max()) <= RTOL[dtype] * float(b.float().abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 40), (1, 40), (7, 40), (3, 700), (2, 4100)])
def test_norms(rows: int, width: int, dtype: torch.dtype) -> None:
    x, delta = (randn(rows, width, seed=seed, dtype=dtype) for seed in (1, 2))
    w, b = (randn(width, seed=seed, dtype=dtype) for seed in (3, 4))
    agree(norm_path, norm_reference, "rms_norm", x, w, 1e-6, dtype=dtype)
    agree(norm_path, norm_reference, "layer_norm", x + 2, w, b, 1e-5, dtype=dtype)
    agree(norm_path, norm_cpu, "add_rms_norm", x, delta, 0.3, w, 1e-6, dtype=dtype)
    agree(norm_path, norm_cpu, "add_layer_norm", x, delta, 1.0, w, b, 1e-5, dtype=dtype)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("rows", "width", "top_k"), [(0, 40, 2), (1, 40, 8), (7, 700, 3), (2, 4100, 1)])
def test_norms_sum_what_experts_left(rows: int, width: int, top_k: int, ordered: bool) -> None:
    """To the bit as a launch that sums, then one that adds."""
    left, want = unsummed(rows, width, top_k, ordered)
    x, w, b = (randn(*shape, seed=2, dtype=torch.bfloat16) for shape in ((rows, width), (width,), (width,)))
    for name, *parameters in (("add_rms_norm", w), ("add_layer_norm", w, b)):
        fused = getattr(norm_path, name)(x, left, 0.3, *parameters, 1e-6)
        apart = getattr(norm_path, name)(x, summed(left), 0.3, *parameters, 1e-6)
        assert all(torch.equal(a, b) for a, b in zip(fused, apart, strict=True))
        for a, b in zip(fused, getattr(norm_cpu, name)(x, want.bfloat16(), 0.3, *parameters, 1e-6), strict=True):
            assert a.shape == b.shape and float((a - b).float().norm()) <= 4e-3 * float(b.float().norm())


def test_norms_read_slices_of_a_projection() -> None:
    wide, weight = randn(6, 96, seed=0, dtype=torch.float32), randn(8, seed=1, dtype=torch.float32)
    agree(
        norm_path, norm_reference, "rms_norm", wide[:, 32:64].unflatten(-1, (4, 8)), weight, 1e-6, dtype=torch.float32
    )
    agree(norm_path, norm_reference, "rms_norm", wide[:, 32:40], weight, 1e-6, dtype=torch.float32)
    agree(norm_path, norm_reference, "rms_norm", wide.view(2, 3, 12, 8), weight, 1e-6, dtype=torch.float32)
    agree(norm_path, norm_reference, "rms_norm", wide[:, :88:11], weight, 1e-6, dtype=torch.float32)


def test_what_wants_a_gradient_gets_one() -> None:
    x = randn(2, 8, seed=0, dtype=torch.float32).requires_grad_()
    norm_path.rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [2, 10, 16])
def test_rotation(rotary: int, interleaved: bool, dtype: torch.dtype) -> None:
    qkv = randn(3, 11 * 16 + 7, seed=1, dtype=dtype)
    q, k = qkv[:, : 9 * 16].unflatten(-1, (9, 16)), qkv[:, 9 * 16 : 11 * 16].unflatten(-1, (2, 16))
    cos, sin = rope_tables(
        torch.tensor([0, 5, 1000]), torch.rand(rotary // 2, generator=torch.Generator().manual_seed(2)), 1.2
    )
    agree(rope_path, rope_reference, "rope", q, cos, sin, interleaved, dtype=dtype)
    agree(rope_path, rope_reference, "rope", q[:, :, 16 - rotary :], cos, sin, interleaved, dtype=dtype)
    for weights in ((None, None), (randn(16, seed=3, dtype=dtype), randn(16, seed=4, dtype=dtype))):
        agree(rope_path, rope_reference, "norm_rope", q, k, *weights, 1e-6, cos, sin, interleaved, dtype=dtype)
    agree(rope_path, rope_reference, "rope", q[:0], cos[:0], sin[:0], interleaved, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", [10, 16])
def test_storing_on_the_way_stores_the_same(rotary: int, dtype: torch.dtype) -> None:
    """One launch against two: queries, and the whole cache, padding and other tokens' cells included."""
    heads, kv_heads, width, page = 9, 11, 16, 4
    qkv = randn(4, (heads + 2 * kv_heads) * width + 5, seed=5, dtype=dtype)
    q, k, v = (
        part.unflatten(-1, (-1, width))
        for part in qkv[:, :-5].split((heads * width, kv_heads * width, kv_heads * width), dim=-1)
    )
    cos, sin = rope_tables(torch.tensor([0, 5, 1000, 3]), torch.rand(rotary // 2), 1.0)
    slots = torch.tensor([9, 2, -1, 15])
    for weights in ((None, None), (randn(width, seed=3, dtype=dtype), randn(width, seed=4, dtype=dtype))):
        together, apart = (paged.allocate(4, page, kv_heads, width, dtype, "cpu").fill_(float("nan")) for _ in range(2))
        rotated = rope_path.norm_rope_store(q, k, v, *weights, 1e-6, cos, sin, False, together, slots)
        q_apart, k_apart = rope_path.norm_rope(q, k, *weights, 1e-6, cos, sin, False)
        paged.write(apart, k_apart, v, slots)
        assert rotated is not None and torch.equal(rotated, q_apart)
        assert torch.equal(together.nan_to_num(7.0), apart.nan_to_num(7.0))
    coded = paged.allocate(4, page, kv_heads, width, torch.int8, "cpu")
    assert rope_path.norm_rope_store(q, k, v, None, None, 1e-6, cos, sin, False, coded, slots) is None


def test_the_kernels_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compare is not torch with torch."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("fell back to torch")

    falls_back: list[tuple[ModuleType, str, Callable[[], object]]] = [
        (norm_path.cpu, "rms_norm", lambda: norm_path.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6)),
        (rope_path.cpu, "rope", lambda: rope_path.rope(torch.ones(1, 1, 8), torch.ones(1, 4), torch.ones(1, 4), False)),
    ]
    for module, name, run in falls_back:
        monkeypatch.setattr(module, name, refuse)
        run()
