"""DeepSeek-V3 and R1: latent attention; sigmoid router with correction bias, groups scored by their best two."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, deepseek_v3_moe, dense_then_moe, model, mtp_extra, read_mla
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("moe_layer_freq", 1)
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")
    moe = deepseek_v3_moe(c, scale=2.5)
    mixer = read_mla(c, interleaved=c.flag("rope_interleave", True))
    return model(c, dense_then_moe(c, mixer, moe, default=3), eps=1e-6)


FAMILY = Family(
    name="deepseek_v3", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS), extra=mtp_extra
)
