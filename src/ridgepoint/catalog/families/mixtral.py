"""Mixtral: plain GQA, softmax over all experts, the chosen weights normalised, one optional window everywhere."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, model, plain_moe, read_gqa, read_top_k, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import MIXTRAL_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    experts, top_k = read_top_k(c, "num_local_experts")
    moe = plain_moe(c, experts, top_k, width=c.integer("intermediate_size"), router=router("softmax", normalise=True))
    c.ignore("router_jitter_noise")  # training only
    window = c.integer("sliding_window") if c.has("sliding_window") else c.get("sliding_window")
    return model(c, [layer(read_gqa(c), moe, window)] * c.integer("num_hidden_layers"), eps=1e-5)


FAMILY = Family(
    name="mixtral", read=read, pieces=lambda spec: standard_pieces(spec, "block_sparse_moe", MIXTRAL_EXPERTS)
)
