"""Mixtral: plain GQA, softmax over all experts, the chosen weights normalised, one optional window everywhere."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, check_top_k, layer, model, read_gqa, router, silu
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import MIXTRAL_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec, MoeSpec


def read(c: ConfigReader) -> ModelSpec:
    experts, top_k = c.integer("num_local_experts"), c.integer("num_experts_per_tok")
    check_top_k(c, experts, top_k)
    moe = MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=c.integer("intermediate_size"),
        activation=silu(c),
        bias=False,
        router=router("softmax", normalise=True),
        shared=None,
        latent_dim=None,
        latent_norm=False,
    )
    c.ignore("router_jitter_noise")  # training only
    window = c.integer("sliding_window") if c.has("sliding_window") else c.get("sliding_window")
    return model(c, [layer(read_gqa(c), moe, window)] * c.integer("num_hidden_layers"), eps=1e-5)


FAMILY = Family(
    name="mixtral", read=read, pieces=lambda spec: standard_pieces(spec, "block_sparse_moe", MIXTRAL_EXPERTS)
)
