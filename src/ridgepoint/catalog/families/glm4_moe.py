"""GLM-4.5-MoE: partial rotary, sigmoid router with correction bias and groups, shared experts, first layers dense."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, deepseek_v3_moe, dense_then_moe, model, mtp_extra, read_gqa
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    qk_norm = c.flag("use_qk_norm", False)
    mixer = read_gqa(
        c, qk_norm="per_head" if qk_norm else "none", qkv_bias=c.flag("attention_bias", False), partial=0.5
    )
    moe = deepseek_v3_moe(c, scale=1.0)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
    return model(c, dense_then_moe(c, mixer, moe, default=1), eps=1e-5)


FAMILY = Family(
    name="glm4_moe", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
