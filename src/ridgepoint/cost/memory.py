"""Bytes that live on a chip: its share of the weights, of each sequence's KV, and the activations of a step.

Traps kept out: MLA's latent is one per token for all heads, so TP replicates it; GQA's KV stops dividing at G heads; experts
are divided over ep x moe_tp chips, never charged whole; PP divides weights by its stages, and KV per sequence too, but needs as
many more sequences in flight, so KV per chip at a full pipeline does not change.
"""

from __future__ import annotations

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num, largest, smallest
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.shape import LayerKind, shape_of


def kv_bytes_per_token_layer(kind: LayerKind, kv_format: str) -> float:
    """Cache bytes one token adds in one layer of `kind`, all heads, indexer keys included; 0 where the layer stores none."""
    if not kind.owns_kv:
        return 0.0
    values = 0
    if kind.gqa:
        values = kind.gqa.num_kv_heads * (kind.gqa.head_dim + kind.gqa.v_head_dim)
    elif kind.mla:
        values = kind.mla.kv_rank + kind.mla.rope_dim
    indexer = (
        kind.indexer.head_dim * 1.0 if kind.indexer else 0.0
    )  # DSA keeps its keys in fp8 whatever the cache's format
    return values * bytes_per_value(kv_format) + indexer


def kv_bytes_per_token(spec: ModelSpec, kv_format: str = "bf16") -> float:
    """The growing part: bytes each further token adds, over layers without a window."""
    return sum(k.count * kv_bytes_per_token_layer(k, kv_format) for k in shape_of(spec).kinds if k.window is None)


def kv_fixed_bytes_per_seq(spec: ModelSpec, kv_format: str = "bf16") -> float:
    """The part that stops growing: full windows and recurrent states."""
    total = 0.0
    for kind in shape_of(spec).kinds:
        if kind.window is not None:
            total += kind.count * kind.window * kv_bytes_per_token_layer(kind, kv_format)
        if kind.linear:
            total += kind.count * kind.linear.state_bytes_per_seq
    return total


def kv_bytes_per_seq(spec: ModelSpec, context: Num, kv_format: str = "bf16") -> Num:
    """All cache bytes of one sequence of `context` tokens, over the whole instance (no replication counted)."""
    total: Num = 0.0
    for kind in shape_of(spec).kinds:
        kept = context if kind.window is None else smallest(context, kind.window)
        total = total + kind.count * kv_bytes_per_token_layer(kind, kv_format) * kept
        if kind.linear:
            total = total + kind.count * kind.linear.state_bytes_per_seq
    return total


def kv_replication(kind: LayerKind, tp: Num) -> Num:
    """How many times TP stores a layer's cache: tp for MLA (one latent for all heads), tp / G beyond G heads for GQA."""
    if kind.mla:
        return tp * 1.0
    if kind.gqa:
        return largest(1.0, tp / kind.gqa.num_kv_heads)
    return 1.0


def weight_bytes(spec: ModelSpec, precision: Precision) -> float:
    """The whole model's weights once."""
    shape = shape_of(spec)
    dense, expert, head = (
        bytes_per_value(precision.weights),
        bytes_per_value(precision.experts),
        bytes_per_value(precision.head),
    )
    total = (shape.embedding_params + (0 if shape.tied else shape.head_params) + shape.final_norm_params) * head
    for kind in shape.kinds:
        experts = kind.moe.num_experts * kind.expert_params if kind.moe else 0
        body = kind.mixer_params + kind.indexer_params + kind.dense_params + kind.latent_params
        total += kind.count * (
            body * dense + (experts + kind.shared_params) * expert + (kind.router_params + kind.norm_params) * head
        )
    return total


def weight_bytes_per_chip(spec: ModelSpec, precision: Precision, layout: Layout) -> Num:
    """Attention divides by tp (each data-parallel rank holds a copy), feed-forward by the stage's chips, all by pp."""
    shape = shape_of(spec)
    dense, expert, head = (
        bytes_per_value(precision.weights),
        bytes_per_value(precision.experts),
        bytes_per_value(precision.head),
    )
    ends = (shape.embedding_params + (0 if shape.tied else shape.head_params)) * head / layout.stage_chips
    total: Num = 0.0
    for kind in shape.kinds:
        experts = kind.moe.num_experts * kind.expert_params if kind.moe else 0
        total = total + kind.count * (
            (kind.mixer_params + kind.indexer_params) * dense / layout.tp
            + (kind.dense_params + kind.latent_params) * dense / layout.stage_chips
            + experts * expert / layout.stage_chips
            + kind.shared_params * expert / layout.tp
            + (kind.router_params + kind.norm_params) * head
        )
    return total / layout.pp + ends


def kv_bytes_per_chip(spec: ModelSpec, precision: Precision, layout: Layout, sequences: Num, context: Num) -> Num:
    """`sequences` over the whole instance, each of `context` tokens. Stages hold L/pp layers of every sequence in flight."""
    total: Num = 0.0
    for kind in shape_of(spec).kinds:
        kept = context if kind.window is None else smallest(context, kind.window)
        per_seq = kv_bytes_per_token_layer(kind, precision.kv) * kept
        if kind.linear:
            per_seq = per_seq + kind.linear.state_bytes_per_seq
        total = total + kind.count * per_seq * kv_replication(kind, layout.tp) / layout.tp
    return total * sequences / layout.dp_attention / layout.pp


def activation_bytes_per_chip(spec: ModelSpec, tokens: Num, layout: Layout, precision: Precision) -> Num:
    """Peak scratch of one step: the widest live set of a layer (residual, its norm, and the feed-forward's inside) in bf16."""
    widest = 0.0
    for kind in shape_of(spec).kinds:
        inside = 0.0
        if kind.dense:
            inside = 3.0 * kind.dense.width
        elif kind.moe:
            inside = 3.0 * kind.moe.top_k * kind.moe.width + 2.0 * kind.moe.top_k * spec.d_model
        widest = max(widest, inside)
    return 2.0 * tokens / layout.dp_attention * (4.0 * spec.d_model + widest / layout.tp)


def memory_per_chip(
    spec: ModelSpec, precision: Precision, layout: Layout, *, sequences: Num, context: Num, step_tokens: Num
) -> dict[str, Num]:
    """Bytes on each chip by use; their sum must fit in what `usable_bytes` leaves."""
    return {
        "weights": weight_bytes_per_chip(spec, precision, layout),
        "kv": kv_bytes_per_chip(spec, precision, layout, sequences, context),
        "activations": activation_bytes_per_chip(spec, step_tokens, layout, precision),
    }


def usable_bytes(hardware: Accelerator, layout: Layout, *, reserve_frac: float = 0.08) -> float:
    """Capacity less what the runtime, graphs and fragmentation take (`reserve_frac`, an estimate).

    The capacity is what the driver reports where that is known: a GPU sold as 80 GB reports 81,559 MiB.
    """
    if layout.sram:
        return hardware.need("spec_sram_bytes", "an SRAM-resident layout") * (1 - reserve_frac)
    if hardware.measure_memory_bytes is not None:
        return hardware.measure_memory_bytes * (1 - reserve_frac)
    return hardware.need("spec_memory_bytes", "whether a model fits") * (1 - reserve_frac)


def max_sequences(
    spec: ModelSpec, precision: Precision, layout: Layout, hardware: Accelerator, *, context: Num, step_tokens: Num
) -> Num:
    """Sequences of `context` tokens that fit beside the weights; negative or below 1 means the model does not fit."""
    free = usable_bytes(hardware, layout) - weight_bytes_per_chip(spec, precision, layout)
    free = free - activation_bytes_per_chip(spec, step_tokens, layout, precision)
    return free / kv_bytes_per_chip(spec, precision, layout, 1.0, context)
