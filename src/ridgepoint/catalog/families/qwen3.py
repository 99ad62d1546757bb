"""Qwen3 dense: GQA with a norm on every query and key head, optional windows from a layer upwards."""

from __future__ import annotations

from ridgepoint.catalog.families.common import Family, layer, layer_windows, model, read_gqa, silu
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import QWEN_EXPERTS, standard_pieces
from ridgepoint.catalog.spec import DenseSpec, ModelSpec


def read(c: ConfigReader) -> ModelSpec:
    bias, num_layers = c.flag("attention_bias", False), c.integer("num_hidden_layers")
    mixer = read_gqa(c, qk_norm="per_head", qkv_bias=bias, o_bias=bias, head_dim=128)
    ffn = DenseSpec(width=c.integer("intermediate_size"), activation=silu(c), bias=False)
    windowed = c.flag("use_sliding_window", False)
    window = c.count("sliding_window", 4096) if windowed else c.get("sliding_window") and None
    first = c.count("max_window_layers", 28)
    default = ["sliding_attention" if windowed and i >= first else "full_attention" for i in range(num_layers)]
    windows = layer_windows(c, num_layers, window, default)
    return model(c, [layer(mixer, ffn, w) for w in windows], eps=1e-6)


FAMILY = Family(name="qwen3", read=read, pieces=lambda spec: standard_pieces(spec, "mlp", QWEN_EXPERTS))
