"""DeepSeek-V2: latent attention with interleaved rotary channels; softmax router, greedy or limited to best groups."""

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
    grouped = c.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    num_groups, topk_groups = groups(c, experts, top_k) if grouped else (1, 1)
    c.ignore("n_group", "topk_group")  # written, and unused, by greedy models too
    c.expect("scoring_func", "softmax")
    c.expect("norm_topk_prob", False)
    c.expect("moe_layer_freq", 1)
    c.expect("mlp_bias", False)
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=width,
        router=router(
            "softmax",
            normalise=False,
            scale=c.number("routed_scaling_factor", 1.0),
            num_groups=num_groups,
            topk_groups=topk_groups,
            group_score="max",
        ),
        shared=shared_experts(c, width, default=2),
    )
    mixer = read_mla(c, interleaved=True)
    return model(c, dense_then_moe(c, mixer, moe, default=0), eps=1e-6)


FAMILY = Family(
    name="deepseek_v2", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
