"""gpt-oss: a learnt sink per head, windows on every other layer, YaRN, biases everywhere, clamped SwiGLU.

Experts are stored stacked, input-major, with gate and up columns alternating (plain or as MXFP4 blocks, which decode
to the same tensors). The router's softmax is over the chosen logits only.
"""

from __future__ import annotations

from collections.abc import Iterator

from ridgepoint.catalog.families.common import Family, check_top_k, layer, layer_windows, model, read_gqa, router
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.weights import Piece, block_norm_pieces, gqa_pieces, outer_pieces
from ridgepoint.catalog.spec import ClampedSwiGlu, ModelSpec, MoeSpec


def read(c: ConfigReader) -> ModelSpec:
    bias = c.flag("attention_bias", True)
    mixer = read_gqa(c, qkv_bias=bias, o_bias=bias, sinks=True, head_dim=64, theta=150_000.0)
    experts, top_k = (
        c.integer("num_local_experts", "num_experts"),
        c.integer("num_experts_per_tok", "experts_per_token"),
    )
    check_top_k(c, experts, top_k)
    c.expect("hidden_act", "silu")
    moe = MoeSpec(
        num_experts=experts,
        top_k=top_k,
        width=c.integer("intermediate_size"),
        activation=ClampedSwiGlu(alpha=c.number("swiglu_alpha", 1.702), limit=c.number("swiglu_limit", 7.0)),
        bias=True,
        router=router("softmax_topk", normalise=False, bias=True),
        shared=None,
        latent_dim=None,
        latent_norm=False,
    )
    num_layers = c.integer("num_hidden_layers")
    c.ignore("initial_context_length")  # restates the rotary scaling's original context
    default = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(num_layers)]
    windows = layer_windows(c, num_layers, c.integer("sliding_window", default=128), default)
    return model(c, [layer(mixer, moe, w) for w in windows], eps=1e-5)


def pieces(spec: ModelSpec) -> Iterator[Piece]:
    yield from outer_pieces(spec)
    for i, block in enumerate(spec.layers):
        assert isinstance(block.ffn, MoeSpec)
        yield from block_norm_pieces(spec, i)
        yield from gqa_pieces(spec, i)
        yield from _experts(f"model.layers.{i}.mlp", f"layers.{i}.ffn", spec.d_model, block.ffn)


def _experts(there: str, here: str, d: int, moe: MoeSpec) -> Iterator[Piece]:
    e, f = moe.num_experts, moe.width
    yield Piece(tensor=f"{there}.router.weight", shape=(e, d), param=f"{here}.router.weight")
    yield Piece(tensor=f"{there}.router.bias", shape=(e,), param=f"{here}.router.bias")
    for first, rows in ((0, (0, f)), (1, (f, 2 * f))):
        yield Piece(
            tensor=f"{there}.experts.gate_up_proj",
            shape=(e, d, 2 * f),
            param=f"{here}.experts.w_gate_up_E2FD",
            rows=rows,
            axis=1,
            every=(first, 2),
            layout="transposed",
        )
        yield Piece(
            tensor=f"{there}.experts.gate_up_proj_bias",
            shape=(e, 2 * f),
            param=f"{here}.experts.bias_gate_up_E2F",
            rows=rows,
            axis=1,
            every=(first, 2),
        )
    yield Piece(
        tensor=f"{there}.experts.down_proj", shape=(e, f, d), param=f"{here}.experts.w_down_EDF", layout="transposed"
    )
    yield Piece(tensor=f"{there}.experts.down_proj_bias", shape=(e, d), param=f"{here}.experts.bias_down_ED")


FAMILY = Family(name="gpt_oss", read=read, pieces=pieces)
