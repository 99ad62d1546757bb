"""DeepSeek-V3 and R1: latent attention; sigmoid router with correction bias, groups scored by their best two."""

from __future__ import annotations

from ridgepoint.catalog.families.common import (
    Family,
    dense_then_moe,
    groups,
    model,
    mtp_extra,
    plain_moe,
    read_mla,
    read_top_k,
    router,
    shared_experts,
)
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    (experts, top_k), width = read_top_k(c, "n_routed_experts"), c.integer("moe_intermediate_size")
    num_groups, topk_groups = groups(c, experts, top_k)
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("moe_layer_freq", 1)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=width,
        router=router(
            "sigmoid",
            normalise=c.flag("norm_topk_prob", True),
            scale=c.number("routed_scaling_factor", 2.5),
            correction_bias=True,
            num_groups=num_groups,
            topk_groups=topk_groups,
            group_score="top2_sum",
        ),
        shared=shared_experts(c, width, default=1),
    )
    mixer = read_mla(c, interleaved=c.flag("rope_interleave", True))
    return model(c, dense_then_moe(c, mixer, moe, default=3), eps=1e-6)


FAMILY = Family(
    name="deepseek_v3", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
