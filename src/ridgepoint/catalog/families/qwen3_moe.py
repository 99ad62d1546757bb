"""Qwen3-MoE: Qwen3's attention; softmax router, weights normalised or not; some layers may be dense."""

from __future__ import annotations

from ridgepoint.catalog.families.common import (
    Family,
    layer,
    model,
    plain_dense,
    plain_moe,
    read_gqa,
    read_top_k,
    router,
)
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    mixer = read_gqa(c, qk_norm="per_head", qkv_bias=bias, o_bias=bias)
    experts, top_k = read_top_k(c, "num_experts", "num_local_experts")
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=c.integer("moe_intermediate_size"),
        router=router("softmax", normalise=c.flag("norm_topk_prob", False)),
    )
    dense = plain_dense(c)
    windowed = c.flag("use_sliding_window", False)
    window = c.integer("sliding_window", default=4096) if windowed else None
    c.ignore("sliding_window", "max_window_layers")
    sparse = sparse_layers(c)
    return model(c, [layer(mixer, moe if s else dense, window) for s in sparse], eps=1e-6)


def sparse_layers(c: ConfigReader) -> list[bool]:
    """Which layers hold experts: every `decoder_sparse_step`-th, except those listed as dense."""
    step, dense = c.integer("decoder_sparse_step", default=1), c.get("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise c.refuse("mlp_only_layers", dense, "a list of layer numbers")
    return [i not in dense and (i + 1) % step == 0 for i in range(c.integer("num_hidden_layers"))]


FAMILY = Family(name="qwen3_moe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS))
