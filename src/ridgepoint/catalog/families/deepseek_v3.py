"""DeepSeek-V3 and R1: latent attention; sigmoid router with correction bias, groups scored by their best two."""

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
    num_groups, topk_groups = groups(c, experts, top_k)
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("moe_layer_freq", 1)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
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
            scale=c.number("routed_scaling_factor", 2.5),
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
    mixer, first = read_mla(c, interleaved=c.flag("rope_interleave", True)), c.count("first_k_dense_replace", 3)
    layers = [layer(mixer, dense if i < first else moe) for i in range(c.integer("num_hidden_layers"))]
    return model(c, layers, eps=1e-6)


FAMILY = Family(
    name="deepseek_v3", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
