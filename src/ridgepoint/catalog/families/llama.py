"""Llama 3 (and 2): dense, GQA, no head norms."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, model, read_gqa, silu
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import DenseSpec, ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", False)
    mixer = read_gqa(c, qkv_bias=bias, o_bias=bias)
    ffn = DenseSpec(width=c.integer("intermediate_size"), activation=silu(c), bias=c.flag("mlp_bias", False))
    return model(c, [layer(mixer, ffn)] * c.integer("num_hidden_layers"), eps=1e-6)


FAMILY = Family(name="llama", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS))
