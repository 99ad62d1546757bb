"""Kinds of attention and recurrence: FLOPs and cache bytes against sums written out token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ridgepoint.catalog.models import model_spec
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost import (
    Layout,
    Precision,
    StepBatch,
    kv_bytes_per_seq,
    kv_bytes_per_token,
    kv_fixed_bytes_per_seq,
    shape_of,
)
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.attention import cache_read_bytes, cache_write_bytes, mixer_flops
from ridgepoint.cost.batch import Group
from ridgepoint.cost.memory import kept_bytes
from ridgepoint.cost.shape import LayerKind

V4 = model_spec("deepseek-v4-flash")


def v4_kind(ratio: int | None) -> LayerKind:
    return next(k for k in shape_of(V4).kinds if k.compressed and k.compressed.ratio == ratio)


@pytest.mark.parametrize(
    ("ratio", "new", "cached"), [(4, 64, 4096), (128, 32, 8192), (4, 1, 100_000), (None, 16, 1000)]
)
def test_compressed_attention_pair_by_pair(ratio: int | None, new: int, cached: int) -> None:
    kind = v4_kind(ratio)
    mixer, indexer = kind.compressed, kind.indexer
    assert mixer is not None and kind.window == 128
    flops = 0.0
    for position in range(cached, cached + new):
        entries = position / ratio if ratio else 0.0
        if indexer:
            flops += 2 * indexer.num_heads * indexer.head_dim * entries
            entries = min(entries, indexer.top_k)
        flops += 4 * mixer.num_heads * mixer.head_dim * (min(position, 128) + entries)
    got = mixer_flops(kind, Group(count=3.0, new=float(new), cached=float(cached)))
    assert got == pytest.approx(3 * flops, rel=2e-3)  # the integral and the sum differ by half a token


def test_compressed_cache_is_read_as_chosen() -> None:
    kind = v4_kind(4)
    read = cache_read_bytes(kind, Group(count=1.0, new=1.0, cached=40_000.0), "bf16")
    assert read == 128 * 512 * 2 + 10_000 * 128 + 512 * 512 * 2  # window, every index key in fp8, 512 chosen entries
    far = v4_kind(128)
    assert cache_read_bytes(far, Group(count=1.0, new=1.0, cached=128_000.0), "bf16") == 128 * 512 * 2 + 1000 * 512 * 2
    assert cache_write_bytes(far, Group(count=2.0, new=4.0, cached=0.0), "fp8") == 2 * 4 * (512 + 512 / 128)


@pytest.mark.parametrize(
    "name",
    ["deepseek-v4-flash", "kimi-k3", "nemotron-3-nano-30b-a3b", "gemma-4-26b-a4b", "minimax-m3", "step-3.7-flash"],
)
def test_growth_and_fixed_part_make_the_cache(name: str) -> None:
    spec = model_spec(name)
    for context in (200_000.0, 250_000.0):
        whole = kv_fixed_bytes_per_seq(spec) + kv_bytes_per_token(spec) * context
        assert kv_bytes_per_seq(spec, context) == pytest.approx(whole, rel=1e-12)
    assert kv_bytes_per_seq(spec, 50.0) < kv_bytes_per_seq(spec, 5000.0)


def test_a_recurrent_state_neither_grows_nor_costs_more_to_read() -> None:
    kind = next(k for k in shape_of(model_spec("kimi-k3")).kinds if k.linear)
    assert kept_bytes(kind, 10.0, "fp8") == kept_bytes(kind, 1e6, "bf16") == 96 * 128 * 128 * 4 + 3 * 96 * 128 * 3 * 2
    short, long = (cache_read_bytes(kind, Group(count=2.0, new=1.0, cached=c), "bf16") for c in (10.0, 1e6))
    assert short == long == 2 * kept_bytes(kind, 10.0, "bf16")


def test_chosen_blocks_bound_what_attention_reads() -> None:
    kind = next(k for k in shape_of(model_spec("minimax-m3")).kinds if k.indexer)
    group = Group(count=1.0, new=1.0, cached=100_000.0)
    per_token = 4 * (128 + 128) * 2
    assert cache_read_bytes(kind, group, "bf16") == 100_000 * 128 * 2 + 16 * 128 * per_token
    dense = replace(kind, indexer=None)
    assert cache_read_bytes(dense, group, "bf16") == 100_000 * per_token


def with_shared_kv(spec: ModelSpec, owner: int, reader: int) -> ModelSpec:
    layers = list(spec.layers)
    layers[reader] = replace(layers[reader], kv_from_layer=owner)
    return replace(spec, layers=tuple(layers))


def test_a_layer_that_shares_a_cache_stores_nothing_and_reads_as_much() -> None:
    spec = model_spec("llama-3.1-8b")
    shared = with_shared_kv(spec, 0, 1)
    per_layer = 2 * 8 * 128 * 2
    assert kv_bytes_per_token(spec) - kv_bytes_per_token(shared) == per_layer
    assert (
        shape_of(spec).total_params - shape_of(shared).total_params == 2 * 4096 * 8 * 128
    )  # no key or value projection
    batch = StepBatch.decode(4.0, 1000.0)
    reads = [
        sum(k.repeats * k.kv_bytes for k in step_amounts(s, Layout(), Precision(), batch).kernels)
        for s in (spec, shared)
    ]
    assert reads[0] - reads[1] == 4 * per_layer  # only the write of the new token


def test_experts_in_a_latent_width_send_half_the_bytes() -> None:
    spec = model_spec("kimi-k3")
    layout = Layout(dp_attention=8, ep=8)
    sent = {}
    for name, latent in (("latent", 3584), ("full", None)):
        layers = tuple(
            layer if layer.ffn is None or not hasattr(layer.ffn, "latent_dim") else replace(layer, ffn=replace(layer.ffn, latent_dim=latent))
            for layer in spec.layers
        )  # fmt: skip
        amounts = step_amounts(replace(spec, layers=layers), layout, Precision(), StepBatch.decode(64.0, 100.0))
        sent[name] = sum(c.repeats * c.payload_bytes for c in amounts.collectives if c.name == "ep_all_to_all")
    assert sent["full"] == pytest.approx(2 * sent["latent"])


def test_several_residual_streams_cost_their_own_traffic() -> None:
    amounts = step_amounts(V4, Layout(), Precision(), StepBatch.decode(8.0, 100.0))
    mixing = [kernel for kernel in amounts.kernels if kernel.name == "residual"]
    assert sum(k.repeats for k in mixing) == 43
    per_block = (2 + 4) * 4 * (4 * 4096 + 1) + 3
    assert all(k.flops == 2 * 8 * 2 * per_block and k.other_bytes == 8 * 4096 * 8 * 4 for k in mixing)
