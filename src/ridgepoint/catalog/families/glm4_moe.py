"""GLM-4.5-MoE: partial rotary, sigmoid router with correction bias and groups, shared experts, first layers dense."""

from __future__ import annotations

from ridgepoint.catalog.families.common import (
    Family,
    dense_then_moe,
    groups,
    model,
    mtp_extra,
    plain_moe,
    read_gqa,
    read_top_k,
    router,
    shared_experts,
)
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    qk_norm = c.flag("use_qk_norm", False)
    mixer = read_gqa(
        c, qk_norm="per_head" if qk_norm else "none", qkv_bias=c.flag("attention_bias", False), partial=0.5
    )
    (experts, top_k), width = read_top_k(c, "n_routed_experts"), c.integer("moe_intermediate_size")
    num_groups, topk_groups = groups(c, experts, top_k)
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=width,
        router=router(
            "sigmoid",
            normalise=c.flag("norm_topk_prob", True),
            scale=c.number("routed_scaling_factor", 1.0),
            correction_bias=True,
            num_groups=num_groups,
            topk_groups=topk_groups,
            group_score="top2_sum",
        ),
        shared=shared_experts(c, width, default=1),
    )
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
    return model(c, dense_then_moe(c, mixer, moe, default=1), eps=1e-5)


FAMILY = Family(
    name="glm4_moe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
