"""Qwen2-MoE (Qwen1.5-MoE): biased projections, a sigmoid-gated shared expert, alternate windows when switched on."""

from __future__ import annotations

from dataclasses import replace

from ridgepoint.catalog.families.common import (
    Family,
    layer,
    layer_windows,
    model,
    plain_dense,
    plain_moe,
    read_gqa,
    read_top_k,
    router,
)
from ridgepoint.catalog.families.qwen3_moe import sparse_layers
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec, SharedExpertSpec

NAMES = replace(QWEN_EXPERTS, shared="shared_expert", shared_gate="shared_expert_gate")


def read(c: ConfigReader) -> ModelSpec:
    mixer = read_gqa(c, qkv_bias=c.flag("qkv_bias", True))
    experts, top_k = read_top_k(c, "num_experts", "num_local_experts")
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=c.integer("moe_intermediate_size"),
        router=router("softmax", normalise=c.flag("norm_topk_prob", False)),
        shared=SharedExpertSpec(width=c.integer("shared_expert_intermediate_size"), gated=True),
    )
    dense = plain_dense(c)
    windowed, below = c.flag("use_sliding_window", False), c.count("max_window_layers", 28)
    window = c.count("sliding_window", 4096) if windowed else None
    c.ignore("sliding_window")
    sparse = sparse_layers(c)
    default = [
        "sliding_attention" if windowed and i % 2 == 0 and i < below else "full_attention" for i in range(len(sparse))
    ]
    windows = layer_windows(c, len(sparse), window, default)
    layers = [layer(mixer, moe if s else dense, w) for s, w in zip(sparse, windows, strict=True)]
    return model(c, layers, eps=1e-6)


FAMILY = Family(name="qwen2_moe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", NAMES))
