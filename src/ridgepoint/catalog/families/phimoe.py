"""Phi-3.5-MoE: layer norms with bias, biased projections and head, LongRoPE, and the sparse-mixer router."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, model, plain_moe, read_gqa, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import MIXTRAL_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    c.expect("num_experts_per_tok", 2)  # the sparse mixer is defined for two
    moe = plain_moe(
        c,
        c.integer("num_local_experts"),
        2,
        width=c.integer("intermediate_size"),
        router=router("sparsemixer", normalise=False, jitter_eps=c.number("router_jitter_noise", 0.01)),
    )
    c.ignore("input_jitter_noise")  # training only
    mixer = read_gqa(c, qkv_bias=bias, o_bias=bias)
    window = c.integer("sliding_window") if c.has("sliding_window") else c.get("sliding_window")
    layers = [layer(mixer, moe, window)] * c.integer("num_hidden_layers")
    return model(c, layers, eps=1e-5, norm="layer", head_bias=c.flag("lm_head_bias", False))


FAMILY = Family(
    name="phimoe", read=read, pieces=lambda spec: standard_pieces(spec, "block_sparse_moe", MIXTRAL_EXPERTS)
)
