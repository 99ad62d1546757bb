"""Layers: rotary frequencies against closed forms, loads of a router, weights that can be replaced."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ridgepoint.catalog.spec import LongRopeScaling, RopeSpec, RouterSpec, YarnScaling
from ridgepoint.nn.context import CausalContext, GqaInputs
from ridgepoint.nn.ffn import Router
from ridgepoint.nn.linear import Linear, replace_weight
from ridgepoint.nn.rope import Rotary, frequencies


def rope(scaling=None) -> RopeSpec:
    return RopeSpec(theta=10_000.0, rotary_dim=8, interleaved=False, scaling=scaling)


def test_plain_frequencies() -> None:
    inv_freq, magnitude = frequencies(rope(), 100)
    assert magnitude == 1.0
    assert torch.allclose(inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_yarn_keeps_fast_channels_and_divides_slow_ones() -> None:
    scaling = YarnScaling(
        factor=16.0, original_max_context=1024, beta_fast=32.0, beta_slow=1.0, attention_factor=1.3, truncate=True
    )
    inv_freq, magnitude = frequencies(rope(scaling), 100)
    plain, _ = frequencies(rope(), 100)
    assert magnitude == 1.3
    turns = 1024 * plain / (2 * math.pi)
    assert bool((turns[:1] > 32).all()) and bool((turns[3:] < 1).all())
    assert torch.allclose(inv_freq[:1], plain[:1]) and torch.allclose(inv_freq[3:], plain[3:] / 16)


@pytest.mark.parametrize(("max_context", "factor", "magnitude"), [(4096, 1.5, 1.1), (4097, 3.0, 1.4)])
def test_longrope_chooses_by_the_served_context(max_context: int, factor: float, magnitude: float) -> None:
    scaling = LongRopeScaling(
        short_factors=(1.5,) * 4,
        long_factors=(3.0,) * 4,
        short_magnitude=1.1,
        long_magnitude=1.4,
        original_max_context=4096,
    )
    rotary = Rotary(rope(scaling), max_context, device="cpu")
    plain, _ = frequencies(rope(), 100)
    assert torch.allclose(rotary.inv_freq_F, plain / factor)
    cos, sin = rotary(torch.tensor([0, 3]))
    assert torch.allclose(cos[0], torch.full((4,), magnitude)) and torch.allclose(sin[0], torch.zeros(4))


def make_router() -> Router:
    spec = RouterSpec(
        scores="sigmoid",
        normalise=True,
        scale=1.0,
        bias=False,
        correction_bias=True,
        num_groups=1,
        topk_groups=1,
        group_score="max",
        jitter_eps=None,
    )
    router = Router(spec, 2, 4, 6, device="cpu")
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    return router


def test_training_counts_tokens_per_expert_and_serving_does_not() -> None:
    router, x = make_router(), torch.randn(10, 4)
    _, ids = router(x)
    _, more = router(x[:3])
    want = torch.bincount(torch.cat((ids.flatten(), more.flatten())), minlength=6)
    assert torch.equal(router.take_load(), want) and int(want.sum()) == 26
    assert int(router.take_load().sum()) == 0
    router.eval()
    router(x)
    assert int(router.take_load().sum()) == 0


def test_the_correction_bias_moves_the_choice_and_not_the_weight() -> None:
    router, x = make_router(), torch.randn(10, 4)
    assert router.correction_E is not None and "correction_E" not in dict(router.named_parameters())
    router.correction_E[5] = 100.0
    weights, ids = router(x)
    assert bool((ids[:, 0] == 5).all())
    scores = router.logits(x).sigmoid().gather(1, ids)
    assert torch.allclose(weights, scores / scores.sum(-1, keepdim=True))


def test_a_weight_can_be_replaced_by_something_packed() -> None:
    layer = Linear(3, 2, bias=False, dtype=torch.float32, device="cpu")
    packed = object()
    replace_weight(layer, "weight", packed)
    assert layer.weight is packed and not list(layer.parameters())
    with pytest.raises(AttributeError, match="no parameter 'weight'"):
        replace_weight(layer, "weight", packed)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("sinks", [False, True])
def test_causal_attention_sees_only_its_own_past(window: int | None, sinks: bool) -> None:
    """Changing a token moves nothing before it, nothing in another sequence, nothing past its window."""
    from ridgepoint.catalog.spec import GqaSpec

    spec = GqaSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        v_head_dim=8,
        scale=0.3,
        rope=None,
        qkv_bias=False,
        o_bias=False,
        qk_norm="none",
        sinks=sinks,
        qkv_clip=None,
        output_gate="none",
        v_from_k=False,
    )
    ctx, g = CausalContext(2, 6), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, heads, 8, generator=g) for heads in (4, 2, 2))
    sink = torch.randn(4, generator=g) if sinks else None
    inputs = GqaInputs(
        layer=0,
        mixer=spec,
        window=window,
        q_THP=q,
        k_TGP=k,
        v_TGV=v,
        norms=None,
        eps=1e-5,
        tables=None,
        sinks_H=sink,
    )
    before = ctx.gqa(inputs)
    v2 = v.clone()
    v2[1] += 1.0  # the second token of the first sequence
    moved = (ctx.gqa(replace(inputs, v_TGV=v2)) - before).abs().amax((1, 2)) > 0
    last = 6 if window is None else min(6, 1 + window)
    assert moved.nonzero()[:, 0].tolist() == list(range(1, last))
