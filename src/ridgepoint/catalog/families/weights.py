"""Where each checkpoint tensor goes: a flat list of pieces, each filling one region of one decoder parameter.

Pure data, so it can be read both ways (load, export) and tested without tensors. The decoder's parameter names are
those of `models.decoder.Decoder`; fused projections (query-key-value, gate-up) and stacked experts are regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ridgepoint.catalog.spec import DenseSpec, GqaSpec, LayerSpec, MlaSpec, ModelSpec, MoeSpec
from ridgepoint.errors import CheckpointError

Layout = Literal["same", "transposed", "heads"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Checkpoint tensor `tensor` of `shape` fills `param[index]`, or `rows = [start, stop)` of its axis `axis`.

    `every = (first, step)` takes that stride of the stored tensor's last axis (gpt-oss alternates gate and up); then
    `layout` says how it becomes the region: `transposed` swaps the last two axes, `heads` groups rows by head and
    takes `[start, stop)` of each, with `take = (heads, start, stop)`.
    """

    tensor: str
    shape: tuple[int, ...]
    param: str
    index: int | None = None
    rows: tuple[int, int] | None = None
    axis: int = 0
    every: tuple[int, int] | None = None
    layout: Layout = "same"
    take: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """How a family names a mixture's tensors under its feed-forward prefix; `{e}` is the expert."""

    router: str
    gate: str
    up: str
    down: str
    correction: str | None = None
    shared: str | None = None
    shared_gate: str | None = None


QWEN_EXPERTS = ExpertNames(
    router="gate",
    gate="experts.{e}.gate_proj",
    up="experts.{e}.up_proj",
    down="experts.{e}.down_proj",
    correction="gate.e_score_correction_bias",
    shared="shared_experts",
)
MIXTRAL_EXPERTS = ExpertNames(
    router="gate",
    gate="experts.{e}.w1",
    up="experts.{e}.w3",
    down="experts.{e}.w2",
    correction="e_score_correction_bias",
)


def outer_pieces(spec: ModelSpec) -> Iterator[Piece]:
    """Embedding, final norm and head under the names every family here uses."""
    v, d = spec.vocab_size, spec.d_model
    yield Piece(tensor="model.embed_tokens.weight", shape=(v, d), param="embed.weight")
    yield from norm_pieces(spec, "model.norm", "norm")
    if not spec.tied_embeddings:
        yield Piece(tensor="lm_head.weight", shape=(v, d), param="head.weight")
    if spec.head_bias:
        yield Piece(tensor="lm_head.bias", shape=(v,), param="head.bias")


def norm_pieces(spec: ModelSpec, tensor: str, param: str) -> Iterator[Piece]:
    yield Piece(tensor=f"{tensor}.weight", shape=(spec.d_model,), param=f"{param}.weight")
    if spec.norm.kind == "layer":
        yield Piece(tensor=f"{tensor}.bias", shape=(spec.d_model,), param=f"{param}.bias")


def block_norm_pieces(spec: ModelSpec, i: int) -> Iterator[Piece]:
    yield from norm_pieces(spec, f"model.layers.{i}.input_layernorm", f"layers.{i}.mixer_norm")
    yield from norm_pieces(spec, f"model.layers.{i}.post_attention_layernorm", f"layers.{i}.ffn_norm")


def gqa_pieces(spec: ModelSpec, i: int) -> Iterator[Piece]:
    """`self_attn.{q,k,v,o}_proj`, their biases, head norms and sinks."""
    mixer = spec.layers[i].mixer
    assert isinstance(mixer, GqaSpec)
    d, there, here = spec.d_model, f"model.layers.{i}.self_attn", f"layers.{i}.mixer"
    q, k = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
    v = mixer.num_kv_heads * mixer.v_head_dim
    for name, start, size in (("q", 0, q), ("k", q, k), ("v", q + k, v)):
        rows = (start, start + size)
        yield Piece(tensor=f"{there}.{name}_proj.weight", shape=(size, d), param=f"{here}.qkv.weight", rows=rows)
        if mixer.qkv_bias:
            yield Piece(tensor=f"{there}.{name}_proj.bias", shape=(size,), param=f"{here}.qkv.bias", rows=rows)
    o = mixer.num_heads * mixer.v_head_dim
    yield Piece(tensor=f"{there}.o_proj.weight", shape=(d, o), param=f"{here}.o.weight")
    if mixer.o_bias:
        yield Piece(tensor=f"{there}.o_proj.bias", shape=(d,), param=f"{here}.o.bias")
    if mixer.qk_norm != "none":
        widths = (mixer.head_dim, mixer.head_dim) if mixer.qk_norm == "per_head" else (q, k)
        for name, width in zip("qk", widths, strict=True):
            yield Piece(tensor=f"{there}.{name}_norm.weight", shape=(width,), param=f"{here}.{name}_norm.weight")
    if mixer.sinks:
        yield Piece(tensor=f"{there}.sinks", shape=(mixer.num_heads,), param=f"{here}.sinks_H")


def mla_pieces(spec: ModelSpec, i: int) -> Iterator[Piece]:
    """DeepSeek's names. One stored matrix lifts the latent to keys and values of a head; here they are two."""
    mixer = spec.layers[i].mixer
    assert isinstance(mixer, MlaSpec)
    d, there, here, heads = spec.d_model, f"model.layers.{i}.self_attn", f"layers.{i}.mixer", mixer.num_heads
    q_out = heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.q_rank is None:
        yield Piece(tensor=f"{there}.q_proj.weight", shape=(q_out, d), param=f"{here}.q_b.weight")
    else:
        r = mixer.q_rank
        yield from _matrix(f"{there}.q_a_proj", f"{here}.q_a", (r, d), mixer.bias)
        yield Piece(tensor=f"{there}.q_a_layernorm.weight", shape=(r,), param=f"{here}.q_a_norm.weight")
        yield Piece(tensor=f"{there}.q_b_proj.weight", shape=(q_out, r), param=f"{here}.q_b.weight")
    c, per_head = mixer.kv_rank, mixer.nope_dim + mixer.v_dim
    yield from _matrix(f"{there}.kv_a_proj_with_mqa", f"{here}.kv_a", (c + mixer.rope_dim, d), mixer.bias)
    yield Piece(tensor=f"{there}.kv_a_layernorm.weight", shape=(c,), param=f"{here}.kv_a_norm.weight")
    for param, start, stop in (("w_uk_HNC", 0, mixer.nope_dim), ("w_uv_HVC", mixer.nope_dim, per_head)):
        yield Piece(
            tensor=f"{there}.kv_b_proj.weight",
            shape=(heads * per_head, c),
            param=f"{here}.{param}",
            layout="heads",
            take=(heads, start, stop),
        )
    yield from _matrix(f"{there}.o_proj", f"{here}.o", (d, heads * mixer.v_dim), mixer.bias)


def dense_pieces(tensor: str, param: str, d: int, dense: DenseSpec) -> Iterator[Piece]:
    """`{gate,up,down}_proj` of one feed-forward."""
    f = dense.width
    for name, rows in (("gate_proj", (0, f)), ("up_proj", (f, 2 * f))):
        yield Piece(tensor=f"{tensor}.{name}.weight", shape=(f, d), param=f"{param}.gate_up.weight", rows=rows)
        if dense.bias:
            yield Piece(tensor=f"{tensor}.{name}.bias", shape=(f,), param=f"{param}.gate_up.bias", rows=rows)
    yield from _matrix(f"{tensor}.down_proj", f"{param}.down", (d, f), dense.bias)


def moe_pieces(tensor: str, param: str, d: int, moe: MoeSpec, names: ExpertNames) -> Iterator[Piece]:
    """Router, routed experts one by one, correction bias and shared expert."""
    e_count, f = moe.num_experts, moe.width
    if moe.bias:
        raise CheckpointError(f"{tensor}: biases of experts stored one by one are not supported")
    yield from _matrix(f"{tensor}.{names.router}", f"{param}.router", (e_count, d), moe.router.bias)
    if moe.router.correction_bias:
        assert names.correction is not None
        yield Piece(tensor=f"{tensor}.{names.correction}", shape=(e_count,), param=f"{param}.router.correction_E")
    gate_up, down = f"{param}.experts.w_gate_up_E2FD", f"{param}.experts.w_down_EDF"
    for e in range(e_count):
        name = names.gate.format(e=e)
        yield Piece(tensor=f"{tensor}.{name}.weight", shape=(f, d), param=gate_up, index=e, rows=(0, f))
        name = names.up.format(e=e)
        yield Piece(tensor=f"{tensor}.{name}.weight", shape=(f, d), param=gate_up, index=e, rows=(f, 2 * f))
        name = names.down.format(e=e)
        yield Piece(tensor=f"{tensor}.{name}.weight", shape=(d, f), param=down, index=e)
    if moe.shared is not None:
        assert names.shared is not None
        dense = DenseSpec(width=moe.shared.width, activation=moe.activation, bias=False)
        yield from dense_pieces(f"{tensor}.{names.shared}", f"{param}.shared.ffn", d, dense)
        if moe.shared.gated:
            assert names.shared_gate is not None
            yield Piece(
                tensor=f"{tensor}.{names.shared_gate}.weight", shape=(1, d), param=f"{param}.shared.gate.weight"
            )


def standard_pieces(spec: ModelSpec, moe_prefix: str, names: ExpertNames) -> Iterator[Piece]:
    """The layout nearly every family shares: `model.layers.N.{self_attn,mlp}` and its mixture under `moe_prefix`."""
    yield from outer_pieces(spec)
    for i, layer in enumerate(spec.layers):
        yield from block_norm_pieces(spec, i)
        yield from (mla_pieces(spec, i) if isinstance(layer.mixer, MlaSpec) else gqa_pieces(spec, i))
        yield from ffn_pieces(spec, layer, i, moe_prefix, names)


def ffn_pieces(spec: ModelSpec, layer: LayerSpec, i: int, moe_prefix: str, names: ExpertNames) -> Iterator[Piece]:
    if isinstance(layer.ffn, DenseSpec):
        yield from dense_pieces(f"model.layers.{i}.mlp", f"layers.{i}.ffn", spec.d_model, layer.ffn)
    elif layer.ffn is not None:
        yield from moe_pieces(f"model.layers.{i}.{moe_prefix}", f"layers.{i}.ffn", spec.d_model, layer.ffn, names)


def _matrix(tensor: str, param: str, shape: tuple[int, int], bias: bool) -> Iterator[Piece]:
    yield Piece(tensor=f"{tensor}.weight", shape=shape, param=f"{param}.weight")
    if bias:
        yield Piece(tensor=f"{tensor}.bias", shape=shape[:1], param=f"{param}.bias")
