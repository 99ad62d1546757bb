"""OLMoE: norms over the whole query and key projections, an optional clip of all three, softmax router."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, check_top_k, layer, model, read_gqa, router, silu
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec, MoeSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    if bias and c.has("clip_qkv"):
        raise c.refuse("clip_qkv", c.get("clip_qkv"), "null when attention_bias is true")
    clip = c.number("clip_qkv") if c.has("clip_qkv") else c.get("clip_qkv")
    mixer = read_gqa(c, qk_norm="full", qkv_bias=bias, o_bias=bias, qkv_clip=clip)
    experts, top_k = c.integer("num_experts", "num_local_experts"), c.integer("num_experts_per_tok")
    check_top_k(c, experts, top_k)
    moe = MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=c.integer("intermediate_size"),
        activation=silu(c),
        bias=False,
        router=router("softmax", normalise=c.flag("norm_topk_prob", False)),
        shared=None,
        latent_dim=None,
        latent_norm=False,
    )
    return model(c, [layer(mixer, moe)] * c.integer("num_hidden_layers"), eps=1e-5)


FAMILY = Family(name="olmoe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS))
