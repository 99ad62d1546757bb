"""GLM-4.5-MoE: partial rotary, sigmoid router with correction bias and groups, shared experts, first layers dense."""

from __future__ import annotations

from ridgepoint.catalog.families.common import (
    Family,
    check_top_k,
    groups,
    layer,
    model,
    mtp_extra,
    read_gqa,
    router,
    silu,
)
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import DenseSpec, ModelSpec, MoeSpec, SharedExpertSpec


def read(c: ConfigReader) -> ModelSpec:
    qk_norm = c.flag("use_qk_norm", False)
    mixer = read_gqa(
        c, qk_norm="per_head" if qk_norm else "none", qkv_bias=c.flag("attention_bias", False), partial=0.5
    )
    experts, top_k, width = (
        c.integer("n_routed_experts"),
        c.integer("num_experts_per_tok"),
        c.integer("moe_intermediate_size"),
    )
    check_top_k(c, experts, top_k)
    num_groups, topk_groups = groups(c, experts, top_k)
    shared = c.count("n_shared_experts", 1)
    moe = MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=width,
        activation=silu(c),
        bias=False,
        router=router(
            "sigmoid",
            normalise=c.flag("norm_topk_prob", True),
            scale=c.number("routed_scaling_factor", 1.0),
            correction_bias=True,
            num_groups=num_groups,
            topk_groups=topk_groups,
            group_score="top2_sum",
        ),
        shared=SharedExpertSpec(width=width * shared, gated=False) if shared else None,
        latent_dim=None,
        latent_norm=False,
    )
    dense = DenseSpec(width=c.integer("intermediate_size"), activation=silu(c), bias=False)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
    first = c.count("first_k_dense_replace", 1)
    layers = [layer(mixer, dense if i < first else moe) for i in range(c.integer("num_hidden_layers"))]
    return model(c, layers, eps=1e-5)


FAMILY = Family(
    name="glm4_moe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
