"""Granite-MoE: four multipliers (embedding, attention, residual, logits); experts stored stacked, gate rows first."""

from __future__ import annotations

from collections.abc import Iterator

from ridgepoint.catalog.families.common import Family, layer, model, plain_moe, read_gqa, read_top_k, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import Piece, block_norm_pieces, gqa_pieces, outer_pieces
from ridgepoint.catalog.spec import ModelSpec, MoeSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    mixer = read_gqa(c, qkv_bias=bias, o_bias=bias, scale=c.number("attention_multiplier", 1.0))
    experts, top_k = read_top_k(c, "num_local_experts", experts=8, top_k=2)
    moe = plain_moe(
        c, experts, top_k, width=c.integer("intermediate_size"), router=router("softmax_topk", normalise=False)
    )
    divisor = c.number("logits_scaling", 1.0)
    if divisor == 0:
        raise c.refuse("logits_scaling", divisor, "a number other than 0")
    return model(
        c,
        [layer(mixer, moe)] * c.integer("num_hidden_layers"),
        eps=1e-6,
        embedding_scale=c.number("embedding_multiplier", 1.0),
        residual_scale=c.number("residual_multiplier", 1.0),
        logit_scale=1.0 / divisor,
    )


def pieces(spec: ModelSpec) -> Iterator[Piece]:
    yield from outer_pieces(spec)
    for i, block in enumerate(spec.layers):
        moe, d = block.ffn, spec.d_model
        assert isinstance(moe, MoeSpec)
        there, here, e, f = f"model.layers.{i}.block_sparse_moe", f"layers.{i}.ffn", moe.num_experts, moe.width
        yield from block_norm_pieces(spec, i)
        yield from gqa_pieces(spec, i)
        yield Piece(tensor=f"{there}.router.layer.weight", shape=(e, d), param=f"{here}.router.weight")
        yield Piece(tensor=f"{there}.input_linear.weight", shape=(e, 2 * f, d), param=f"{here}.experts.w_gate_up_E2FD")
        yield Piece(tensor=f"{there}.output_linear.weight", shape=(e, d, f), param=f"{here}.experts.w_down_EDF")


FAMILY = Family(name="granitemoe", read=read, pieces=pieces)
