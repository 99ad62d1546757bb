"""OLMoE: norms over the whole query and key projections, an optional clip of all three, softmax router."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, model, plain_moe, read_gqa, read_top_k, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    if bias and c.has("clip_qkv"):
        raise c.refuse("clip_qkv", c.get("clip_qkv"), "null when attention_bias is true")
    clip = c.number("clip_qkv") if c.has("clip_qkv") else c.get("clip_qkv")
    mixer = read_gqa(c, qk_norm="full", qkv_bias=bias, o_bias=bias, qkv_clip=clip)
    experts, top_k = read_top_k(c, "num_experts", "num_local_experts")
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=c.integer("intermediate_size"),
        router=router("softmax", normalise=c.flag("norm_topk_prob", False)),
    )
    return model(c, [layer(mixer, moe)] * c.integer("num_hidden_layers"), eps=1e-5)


FAMILY = Family(name="olmoe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS))
