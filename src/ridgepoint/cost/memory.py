"""Bytes that live on a chip: its share of the weights, of each sequence's KV, and the activations of a step.

Traps kept out: MLA's latent is one per token for all heads, so TP replicates it; GQA's KV stops dividing at G heads; experts
are divided over ep x moe_tp chips, never charged whole; PP divides weights by its stages, and KV per sequence too, but needs as
many more sequences in flight, so KV per chip at a full pipeline does not change.
"""

from __future__ import annotations

from dataclasses import replace

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num, largest, smallest, where
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.shape import LayerKind, shape_of


def entry_bytes(kind: LayerKind, kv_format: str) -> float:
    """One cached entry of a layer, all heads, as attention reads it: a token's keys and values, or a run of tokens pooled in one."""
    values = 0
    if kind.gqa:
        values = kind.gqa.num_kv_heads * (kind.gqa.head_dim + kind.gqa.v_head_dim)
    elif kind.mla:
        values = kind.mla.kv_rank + kind.mla.rope_dim
    elif kind.compressed:
        values = kind.compressed.head_dim  # key and value are one
    return values * bytes_per_value(kv_format)


def index_key_bytes(kind: LayerKind, kv_format: str) -> float:
    """The indexer's key beside one entry."""
    if not kind.indexer:
        return 0.0
    return kind.indexer.head_dim * (1.0 if kind.indexer.fp8_keys else bytes_per_value(kv_format))


def growth_bytes(kind: LayerKind, kv_format: str) -> float:
    """Bytes each further token adds to a layer's cache for good: none in a window, in a recurrent layer, or where it is another's."""
    if not kind.owns_kv or kind.linear:
        return 0.0
    entry = entry_bytes(kind, kv_format) + index_key_bytes(kind, kv_format)
    if kind.compressed:
        return entry / kind.compressed.ratio if kind.compressed.ratio else 0.0
    return entry if kind.window is None else 0.0


def written_bytes(kind: LayerKind, kv_format: str) -> float:
    """Bytes a new token writes into a layer's cache, whatever they overwrite."""
    if not kind.owns_kv or kind.linear:
        return 0.0
    if kind.compressed:
        return entry_bytes(kind, kv_format) + growth_bytes(kind, kv_format)
    return entry_bytes(kind, kv_format) + index_key_bytes(kind, kv_format)


def kept_bytes(kind: LayerKind, context: Num, kv_format: str) -> Num:
    """What one layer keeps of a sequence of `context` tokens."""
    if kind.linear:
        return float(kind.linear.state_bytes_per_seq + kind.linear.conv_bytes_per_seq)
    if not kind.owns_kv:
        return 0.0
    grown = growth_bytes(kind, kv_format) * context
    return grown if kind.window is None else grown + smallest(context, kind.window) * entry_bytes(kind, kv_format)


def kv_bytes_per_token(spec: ModelSpec, kv_format: str = "bf16") -> float:
    """The growing part: bytes each further token adds once every window is full."""
    return sum(kind.count * growth_bytes(kind, kv_format) for kind in shape_of(spec).kinds)


def kv_fixed_bytes_per_seq(spec: ModelSpec, kv_format: str = "bf16") -> float:
    """The part that stops growing: full windows, recurrent states and the inputs of short convolutions."""
    total = 0.0
    for kind in shape_of(spec).kinds:
        full = float(kind.window or 0)
        total += kind.count * (float(kept_bytes(kind, full, kv_format)) - growth_bytes(kind, kv_format) * full)
    return total


def kv_bytes_per_seq(spec: ModelSpec, context: Num, kv_format: str = "bf16") -> Num:
    """All cache bytes of one sequence of `context` tokens, over the whole instance (no replication counted)."""
    return sum((kind.count * kept_bytes(kind, context, kv_format) for kind in shape_of(spec).kinds), 0.0)


def kv_replication(kind: LayerKind, tp: Num) -> Num:
    """How many times TP stores a layer's cache: tp where one entry serves all heads (MLA, compressed), tp / G beyond G heads for
    GQA, tp / H beyond the heads of a recurrent layer."""
    if kind.mla or kind.compressed:
        return tp * 1.0
    if kind.gqa:
        return largest(1.0, tp / kind.gqa.num_kv_heads)
    if kind.linear:
        return largest(1.0, tp / kind.linear.num_heads)
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
            body * dense
            + (experts + kind.shared_params) * expert
            + (kind.router_params + kind.norm_params + kind.residual_params) * head
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
            + (kind.router_params + kind.norm_params + kind.residual_params) * head
        )
    return total / layout.pp + ends


def kv_bytes_per_chip(spec: ModelSpec, precision: Precision, layout: Layout, sequences: Num, context: Num) -> Num:
    """`sequences` over the whole instance, each of `context` tokens. Stages hold L/pp layers of every sequence in flight."""
    total: Num = 0.0
    for kind in shape_of(spec).kinds:
        kept = kept_bytes(kind, context, precision.kv)
        total = total + kind.count * kept * kv_replication(kind, layout.tp) / layout.tp
    return total * sequences / layout.dp_attention / layout.pp


def activation_bytes_per_chip(spec: ModelSpec, tokens: Num, layout: Layout, precision: Precision) -> Num:
    """Peak scratch of one step: the widest live set of a layer (residual, its norm, and the feed-forward's inside) in bf16."""
    shape = shape_of(spec)
    widest = 0.0
    for kind in shape.kinds:
        inside = 0.0
        if kind.dense:
            inside = 3.0 * kind.dense.width
        elif kind.moe:
            inside = 3.0 * kind.moe.top_k * kind.moe.width + 2.0 * kind.moe.top_k * (
                kind.moe.latent_dim or spec.d_model
            )
        widest = max(widest, inside)
    return 2.0 * tokens / layout.dp_attention * ((3.0 + shape.residual_streams) * spec.d_model + widest / layout.tp)


def memory_per_chip(
    spec: ModelSpec, precision: Precision, layout: Layout, *, sequences: Num, context: Num, step_tokens: Num
) -> dict[str, Num]:
    """Bytes on each chip by use; `filled_frac` says whether they fit."""
    return {
        "weights": weight_bytes_per_chip(spec, precision, layout),
        "kv": kv_bytes_per_chip(spec, precision, layout, sequences, context),
        "activations": activation_bytes_per_chip(spec, step_tokens, layout, precision),
    }


def usable_bytes(hardware: Accelerator, layout: Layout, *, reserve_frac: float = 0.08) -> float:
    """Capacity of the memory the weights lie in, less what the runtime, graphs and fragmentation take (`reserve_frac`, an estimate).

    The capacity is what the driver reports where that is known: a GPU sold as 80 GB reports 81,559 MiB.
    """
    if layout.sram:
        return hardware.need("spec_sram_bytes", "an SRAM-resident layout") * (1 - reserve_frac)
    if hardware.measure_memory_bytes is not None:
        return hardware.measure_memory_bytes * (1 - reserve_frac)
    return hardware.need("spec_memory_bytes", "whether a model fits") * (1 - reserve_frac)


def kv_usable_bytes(hardware: Accelerator, layout: Layout) -> float:
    """Capacity of the memory the cache lies in: the weights' own, unless the layout keeps it in main memory beside SRAM."""
    main = replace(layout, sram=False) if layout.split_memory else layout
    return usable_bytes(hardware, main)


def filled_frac(parts: dict[str, Num], hardware: Accelerator, layout: Layout) -> Num:
    """How full the fuller of a chip's memories is with these `memory_per_chip` bytes; above 1 the layout does not fit."""
    rest = sum((value for name, value in parts.items() if name != "kv"), 0.0)
    usable = usable_bytes(hardware, layout)
    if layout.split_memory:
        return largest(rest / usable, parts["kv"] / kv_usable_bytes(hardware, layout))
    return (rest + parts["kv"]) / usable


def max_sequences(
    spec: ModelSpec, precision: Precision, layout: Layout, hardware: Accelerator, *, context: Num, step_tokens: Num,
    beside_bytes: Num = 0.0, beside_kv_bytes: Num = 0.0,
) -> Num:  # fmt: skip
    """Sequences of `context` tokens that fit beside the weights; negative or below 1 means the model does not fit. A drafter takes
    `beside_bytes` of every chip and `beside_kv_bytes` for every sequence."""
    free = usable_bytes(hardware, layout) - weight_bytes_per_chip(spec, precision, layout) - beside_bytes
    free = free - activation_bytes_per_chip(spec, step_tokens, layout, precision)
    if layout.split_memory:
        free = where(free >= 0, kv_usable_bytes(hardware, layout), free)
    return free / (kv_bytes_per_chip(spec, precision, layout, 1.0, context) + beside_kv_bytes)
