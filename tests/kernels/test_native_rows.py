"""Native norms, rope, routing, embedding and activations against their definitions."""

from __future__ import annotations

import pytest
import torch
from native_support import ISAS, needs_native, rms

from ridgepoint.catalog.spec import ClampedSwiGlu, RouterSpec, SwiGlu
from ridgepoint.kernels import native
from ridgepoint.kernels.add_shared import add_shared
from ridgepoint.kernels.add_shared import reference as add_shared_reference
from ridgepoint.kernels.embed import embed
from ridgepoint.kernels.glu import glu
from ridgepoint.kernels.glu import reference as glu_reference
from ridgepoint.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from ridgepoint.kernels.norm import reference as norm_reference
from ridgepoint.kernels.rope import reference as rope_reference
from ridgepoint.kernels.rope import rope, rope_tables
from ridgepoint.kernels.route import reference as route_reference
from ridgepoint.kernels.route import route

pytestmark = [needs_native, pytest.mark.parametrize("isa", ISAS)]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-9}  # relative rms error of a result rounded once
DTYPES = list(ROUNDING)


@pytest.fixture(autouse=True)
def _on(isa: str):  # type: ignore[no-untyped-def]
    with native.forced_isa(isa), torch.no_grad():
        yield


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(got: torch.Tensor, truth: torch.Tensor) -> None:
    assert rms(got.double() - truth) <= ROUNDING[got.dtype] * rms(truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64), (5, 75), (2, 4, 24)])
def test_norms(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, w, b = _randn(*shape).to(dtype), _randn(shape[-1], seed=1).to(dtype), _randn(shape[-1], seed=2).to(dtype)
    _close(rms_norm(x, w, 1e-6), norm_reference.rms_norm(x.double(), w.double(), 1e-6))
    _close(layer_norm(x, w, b, 1e-5), norm_reference.layer_norm(x.double(), w.double(), b.double(), 1e-5))
    if len(shape) == 2:
        delta = _randn(*shape, seed=3).to(dtype)
        total, normed = add_rms_norm(x, delta, 0.5, w, 1e-6)
        _close(total, x.double() + 0.5 * delta.double())
        _close(normed, norm_reference.rms_norm(total.double(), w.double(), 1e-6))
        total, normed = add_layer_norm(x, delta, 1.0, w, b, 1e-6)
        _close(normed, norm_reference.layer_norm(total.double(), w.double(), b.double(), 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_read_strided_heads(isa: str, dtype: torch.dtype) -> None:
    wide, w = _randn(6, 100).to(dtype), _randn(24, seed=1).to(dtype)
    heads = wide[:, 2:74].unflatten(1, (3, 24))
    assert torch.equal(rms_norm(heads, w, 1e-6), rms_norm(heads.contiguous(), w, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width, half", [(64, 32), (40, 10), (16, 8)])
def test_rope(isa: str, dtype: torch.dtype, interleaved: bool, width: int, half: int) -> None:
    positions = torch.tensor([0, 1, 17, 4000])
    inv_freq = 1e4 ** -(torch.arange(half) / half)
    tables = rope_tables(positions, inv_freq, 1.3)
    for got, truth in zip(tables, rope_reference.rope_tables(positions, inv_freq, 1.3), strict=True):
        assert torch.allclose(got, truth, atol=1e-6)
    x = _randn(4, 3, width).to(dtype)
    _close(rope(x, *tables, interleaved), rope_reference.rope(x.double(), *(t.double() for t in tables), interleaved))


ROUTERS = [("softmax", True, 1, 1, "max"), ("softmax", False, 1, 1, "max"), ("sigmoid", True, 4, 2, "top2_sum"), ("softmax_topk", False, 1, 1, "max"), ("sigmoid", True, 4, 1, "max")]  # fmt: skip


@pytest.mark.parametrize("scores, normalise, groups, keep, score", ROUTERS)
def test_routing(isa: str, scores: str, normalise: bool, groups: int, keep: int, score: str) -> None:
    spec = RouterSpec(
        scores=scores, normalise=normalise, scale=2.5, bias=False, correction_bias=True, num_groups=groups,
        topk_groups=keep, group_score=score, jitter_eps=None,
    )  # type: ignore[arg-type]  # fmt: skip
    logits, correction = _randn(50, 24), _randn(24, seed=1).abs() * 0.1
    logits[3, 5] = logits[3, 9] = logits[3].max() + 1  # a tie goes to the lower id
    weights, ids = route(logits, correction, spec, 3)
    truth, chosen = route_reference.route(logits, correction, spec, 3)
    assert torch.equal(ids, chosen)
    assert torch.allclose(weights, truth, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_activation_and_shared_expert(isa: str, dtype: torch.dtype) -> None:
    table, ids = _randn(11, 37).to(dtype), torch.tensor([0, 10, 3])
    assert torch.equal(embed(ids, table, 1.0, dtype), table[ids])
    _close(embed(ids, table, 3.0, torch.bfloat16), table[ids].double() * 3.0)
    with pytest.raises(native.NativeError, match="token id"):
        embed(torch.tensor([11]), table, 1.0, dtype)
    gate_up = (_randn(5, 74) * 3).to(dtype)
    for activation in (SwiGlu(), ClampedSwiGlu(alpha=1.702, limit=2.0)):
        _close(glu(gate_up, activation), glu_reference.glu(gate_up.double(), activation))
    routed, shared, gate = _randn(4, 37).to(dtype), _randn(4, 37, seed=1).to(dtype), _randn(4, 1, seed=2).to(dtype)
    for logit in (None, gate):
        wide = None if logit is None else logit.double()
        _close(
            add_shared(routed, shared, logit), add_shared_reference.add_shared(routed.double(), shared.double(), wide)
        )


def test_glu_far_from_zero(isa: str) -> None:
    x = torch.tensor([[-200.0, -90.0, 90.0, 200.0, 1.0, 1.0, 1.0, 1.0]])
    assert torch.allclose(glu(x, SwiGlu()), glu_reference.glu(x.double(), SwiGlu()).float(), atol=1e-30)
