"""MiniMax-M2: norms over whole query and key projections, partial rotary, sigmoid router with correction bias."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, model, mtp_extra, plain_moe, read_gqa, read_top_k, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import MIXTRAL_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    num_layers = c.integer("num_hidden_layers")
    rotary = c.integer("rotary_dim") if c.has("rotary_dim") else None
    c.expect("use_qk_norm", True)
    c.expect("qk_norm_type", "per_layer")
    c.expect("use_routing_bias", True)
    c.expect("scoring_func", "sigmoid")
    c.expect("shared_intermediate_size", 0)
    c.expect("attn_type_list", [1] * num_layers)
    for branch in ("full_attention", "linear_attention", "mlp"):
        c.expect(f"layernorm_{branch}_beta", 1.0)
    c.ignore("shared_moe_mode", "mlp_intermediate_size", "router_jitter_noise")  # of branches this model does not have
    c.ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers", "rotary_dim")
    c.expect("sliding_window", None)
    experts, top_k = read_top_k(c, "num_local_experts")
    moe = plain_moe(
        c,
        experts,
        top_k,
        width=c.integer("intermediate_size"),
        router=router("sigmoid", normalise=True, correction_bias=True),
    )
    mixer = read_gqa(c, qk_norm="full", theta=5_000_000.0, head_dim=128, rotary_dim=rotary)
    return model(c, [layer(mixer, moe)] * num_layers, eps=1e-6)


FAMILY = Family(
    name="minimax_m2",
    read=read,
    pieces=lambda spec: standard_pieces(spec, "block_sparse_moe", MIXTRAL_EXPERTS),
    extra=mtp_extra,
)
