"""DeepSeek-V2: latent attention with interleaved rotary channels; softmax router, greedy or limited to best groups."""

from __future__ import annotations

from ridgepoint.catalog.families.common import (
    Family,
    check_top_k,
    groups,
    layer,
    model,
    mtp_extra,
    read_mla,
    router,
    silu,
)
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import DenseSpec, ModelSpec, MoeSpec, SharedExpertSpec


def read(c: ConfigReader) -> ModelSpec:
    experts, top_k, width = (
        c.integer("n_routed_experts"),
        c.integer("num_experts_per_tok"),
        c.integer("moe_intermediate_size"),
    )
    check_top_k(c, experts, top_k)
    grouped = c.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    num_groups, topk_groups = groups(c, experts, top_k) if grouped else (1, 1)
    c.ignore("n_group", "topk_group")  # written, and unused, by greedy models too
    c.expect("scoring_func", "softmax")
    c.expect("norm_topk_prob", False)
    c.expect("moe_layer_freq", 1)
    c.expect("mlp_bias", False)
    shared = c.count("n_shared_experts", 2)
    moe = MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=width,
        activation=silu(c),
        bias=False,
        router=router(
            "softmax",
            normalise=False,
            scale=c.number("routed_scaling_factor", 1.0),
            num_groups=num_groups,
            topk_groups=topk_groups,
            group_score="max",
        ),
        shared=SharedExpertSpec(width=width * shared, gated=False) if shared else None,
        latent_dim=None,
        latent_norm=False,
    )
    dense = DenseSpec(width=c.integer("intermediate_size"), activation=silu(c), bias=False)
    mixer, first = read_mla(c, interleaved=True), c.count("first_k_dense_replace", 0)
    layers = [layer(mixer, dense if i < first else moe) for i in range(c.integer("num_hidden_layers"))]
    return model(c, layers, eps=1e-6)


FAMILY = Family(
    name="deepseek_v2", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
