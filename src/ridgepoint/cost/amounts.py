"""What a step does, before asking how fast: kernels with their per-chip FLOPs and bytes, and collectives with their payloads.

Independent of the hardware's speed and of every efficiency, so that a calibration can be fitted by pricing the same amounts
again. Amounts are of the busiest chip. Experts: each token of the stage visits K of them; a rank loads the distinct experts
its tokens hit and, because matrix units work in tiles of rows, computes whole tiles. The kernel counts per layer are what
serving engines launch after fusion (an estimate; they carry the fixed cost of a launch).

Once the last layer's keys and values are stored, rows whose logits nobody wants have done their part: what follows attention there
counts the wanted rows, as the head does. In a decode step all rows are wanted.
"""

from __future__ import annotations

from typing import NamedTuple

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num, all_true, largest, smallest
from ridgepoint.cost.attention import cache_read_bytes, cache_write_bytes, mixer_flops
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_replication
from ridgepoint.cost.routing import busiest_rank, distinct_experts
from ridgepoint.cost.shape import LayerKind, ModelShape, shape_of


class Kernel(NamedTuple):
    """One class of kernels, run in `repeats` layers; amounts are per layer and chip. `part` names the operand formats."""

    name: str
    part: str
    repeats: int
    launches: float
    flops: Num
    padded_flops: Num
    weight_bytes: Num
    kv_bytes: Num
    other_bytes: Num


class Collective(NamedTuple):
    """`repeats` exchanges of `payload_bytes` per chip among `ranks` chips. `kind`: all_reduce, all_to_all or hop."""

    name: str
    kind: str
    repeats: Num
    payload_bytes: Num
    ranks: Num


class Rows(NamedTuple):
    """What a part of the layers works on: rows of the busiest attention rank, and tokens that a stage's experts see at a time."""

    rank: Num
    stage: Num

    @property
    def share_read(self) -> Num:
        """Of weights that every row meets: all, as soon as there is a row."""
        return smallest(self.rank, 1.0)


class StepAmounts(NamedTuple):
    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    layout: Layout
    precision: Precision
    tokens: Num
    sequences: Num
    rows: Num

    @property
    def launches(self) -> float:
        """Kernels one step launches on one chip."""
        return sum(kernel.repeats * kernel.launches for kernel in self.kernels)


# Grouped expert kernels pick a tile near the mean rows per expert, between these; a GPU's matrix units by default.
TILES = (8.0, 128.0)


def _rows(tokens: Num, ranks: Num) -> Num:
    """Items on the busiest of `ranks` ranks: an even share, but a single one cannot be split."""
    return largest(tokens / ranks, smallest(tokens, 1.0))


def step_amounts(
    spec: ModelSpec,
    layout: Layout,
    precision: Precision,
    batch: StepBatch,
    *,
    routing_skew: float = 1.0,
    tiles: tuple[float, float] = TILES,
) -> StepAmounts:
    shape = shape_of(spec)
    tokens = batch.tokens
    ranks = layout.dp_attention * layout.pp
    # Sequences spread evenly over attention ranks, but one prompt sits on one rank.
    rows = sum((_rows(group.count, ranks) * group.new for group in batch.groups), 0.0)
    kernels: list[Kernel] = []
    collectives: list[Collective] = []
    d_model = shape.d_model
    for kind, after in _rows_after_attention(shape, batch, rows, layout):
        _mixer(kernels, kind, batch, rows, after, layout, precision, d_model)
        _feed_forward(kernels, kind, after, layout, precision, d_model, routing_skew, tiles)
        _residual(kernels, kind, rows, after, precision, d_model, shape.residual_streams)
        _exchange(collectives, kind, rows, after.rank, layout, precision, d_model)
    head_rows = _rows(batch.logit_rows, ranks)
    head_bytes = bytes_per_value(precision.head)
    head_flops = 2.0 * head_rows * shape.head_params / layout.tp
    kernels.append(
        Kernel(
            "head", "head", 1, 8.0, head_flops, head_flops, smallest(head_rows, 1.0) * shape.head_params * head_bytes / layout.tp, 0.0,
            head_rows * shape.vocab_size * 6.0 / layout.tp + rows * d_model * 2.0 * head_bytes,
        )
    )  # fmt: skip
    if not all_true(layout.pp == 1):
        collectives.append(
            Collective(
                "pp_hops",
                "hop",
                (layout.pp > 1) * layout.pp * 1.0,
                rows * d_model * 2.0 * shape.residual_streams / layout.tp,
                layout.chips,
            )
        )
    return StepAmounts(tuple(kernels), tuple(collectives), layout, precision, tokens, batch.sequences, rows)


def _rows_after_attention(
    shape: ModelShape, batch: StepBatch, rows: Num, layout: Layout
) -> list[tuple[LayerKind, Rows]]:
    """Each kind of layer, with what goes on behind its attention."""
    every = Rows(rows, largest(batch.tokens / layout.pp, smallest(batch.tokens, 1.0)))
    if all(all_true(group.logits == group.new) for group in batch.groups):
        return [(kind, every) for kind in shape.kinds]
    logits, ranks = batch.logit_rows, layout.dp_attention * layout.pp
    wanted = Rows(
        sum((_rows(group.count, ranks) * group.logits for group in batch.groups), 0.0),
        largest(logits / layout.pp, smallest(logits, 1.0)),
    )
    return [*((kind, every) for kind in shape.earlier), (shape.last, wanted)]


def _mixer(
    out: list[Kernel],
    kind: LayerKind,
    batch: StepBatch,
    rows: Num,
    after: Rows,
    layout: Layout,
    precision: Precision,
    d_model: int,
) -> None:
    params = kind.mixer_params + kind.indexer_params
    if not params:
        return
    before = params - kind.out_params
    flops = 2.0 * (rows * before + after.rank * kind.out_params) / layout.tp
    read = (before + after.share_read * kind.out_params) * bytes_per_value(precision.weights) / layout.tp
    launches = _mixer_launches(kind) + 2.0 * _quantises(precision.weights, precision)
    out.append(
        Kernel(
            "attention_weights", "weights", kind.count, launches, flops, flops, read, 0.0, (rows + after.rank) * d_model * 6.0,
        )
    )  # fmt: skip
    flops, read = 0.0, 0.0
    ranks = layout.dp_attention * layout.pp
    for group in batch.groups:
        share = _rows(group.count, ranks) / largest(group.count, 1e-12)
        flops = flops + mixer_flops(kind, group) * share
        read = (
            read + (cache_read_bytes(kind, group, precision.kv) + cache_write_bytes(kind, group, precision.kv)) * share
        )
    flops = flops / layout.tp
    out.append(
        Kernel(
            "attention_kv",
            "attention",
            kind.count,
            2.0,
            flops,
            flops,
            0.0,
            read * kv_replication(kind, layout.tp) / layout.tp,
            0.0,
        )
    )


def _mixer_launches(kind: LayerKind) -> float:
    """Norm, input projection, rope with cache write, output projection; MLA has low-rank steps and the two absorbed products,
    a compressed cache its pooling."""
    launches = 14.0 if kind.compressed and kind.compressed.ratio else 10.0 if kind.mla or kind.compressed else 4.0
    if kind.gqa and kind.gqa.qk_norm != "none":
        launches += 1.0 if kind.gqa.qk_norm == "per_head" else 3.0
    return launches + (4.0 if kind.indexer else 0.0)


def _quantises(weights: str, precision: Precision) -> float:
    """1 where a product's input must first be quantised by a kernel of its own."""
    return 1.0 if bytes_per_value(precision.activations) < 2.0 and bytes_per_value(weights) < 2.0 else 0.0


def _feed_forward(
    out: list[Kernel],
    kind: LayerKind,
    run: Rows,
    layout: Layout,
    precision: Precision,
    d_model: int,
    skew: float,
    tiles: tuple[float, float],
) -> None:
    rows, stage_tokens, once = run.rank, run.stage, run.share_read
    weights, head = once * bytes_per_value(precision.weights), once * bytes_per_value(precision.head)
    experts = bytes_per_value(precision.experts)
    if kind.dense:
        flops = 2.0 * rows * kind.dense_params / layout.tp
        out.append(
            Kernel(
                "ffn", "weights", kind.count, 4.0 + 2.0 * _quantises(precision.weights, precision), flops, flops, kind.dense_params * weights / layout.tp, 0.0,
                rows * (d_model * 8.0 + kind.dense.width * 6.0 / layout.tp),
            )
        )  # fmt: skip
    if not kind.moe:
        return
    moe = kind.moe
    busy = busiest_rank(layout.ep, stage_tokens, moe.num_experts, moe.top_k, skew)
    # The busiest rank is hit as often as all ranks would be by that many more tokens.
    hit_on_rank = distinct_experts(moe.num_experts, moe.top_k, stage_tokens * busy, skew) / layout.ep
    pairs = stage_tokens * moe.top_k / layout.ep * busy
    per_pair = 2.0 * kind.expert_params / layout.moe_tp
    # A hit expert with r rows computes whole tiles: half a tile more than r on average.
    tile = smallest(largest(pairs / largest(hit_on_rank, 1e-12), tiles[0]), tiles[1])
    padded_pairs = pairs + 0.5 * tile * hit_on_rank
    out.append(
        Kernel(
            "experts", "experts", kind.count, 7.0 + 2.0 * _quantises(precision.experts, precision), pairs * per_pair, padded_pairs * per_pair,
            hit_on_rank * kind.expert_params * experts / layout.moe_tp, 0.0, pairs * _pair_bytes(kind, layout, precision, d_model),
        )
    )  # fmt: skip
    flops = 2.0 * rows * kind.router_params
    out.append(
        Kernel("router", "head", kind.count, 2.0, flops, flops, kind.router_params * head, 0.0, rows * d_model * 2.0)
    )
    if kind.latent_params:
        flops = 2.0 * rows * kind.latent_params / layout.tp
        read = kind.latent_params * weights / layout.tp
        out.append(Kernel("latent", "weights", kind.count, 2.0, flops, flops, read, 0.0, 0.0))
    if kind.shared_params:
        flops = 2.0 * rows * kind.shared_params / layout.tp
        read = once * kind.shared_params * experts / layout.tp
        out.append(Kernel("shared", "experts", kind.count, 3.0, flops, flops, read, 0.0, rows * d_model * 4.0))


def _pair_bytes(kind: LayerKind, layout: Layout, precision: Precision, d_model: int) -> Num:
    """What one token at one expert moves beside weights. Grouped kernels follow one another, and each intermediate is written by
    one and read by the next: the row as it is gathered (read, written, read), what gate and up give in 16 bits, what the
    activation makes of it, and the output, which the weighted sum over experts reads again."""
    moe = kind.moe
    assert moe is not None
    operand = bytes_per_value(precision.activations)
    row = (moe.latent_dim or d_model) * (2.0 + 2.0 * operand + 2.0 + 2.0)
    hidden = moe.width * (4.0 * (moe.activation.matrices - 1) + 2.0 * operand) / layout.moe_tp
    return row + hidden


def _residual(
    out: list[Kernel], kind: LayerKind, rows: Num, after: Rows, precision: Precision, d_model: int, streams: int
) -> None:
    """Several residual streams are read and written around the mixer and around the feed-forward."""
    if not kind.residual_params:
        return
    of_ffn, of_mixer = kind.ffn_residual_params, kind.residual_params - kind.ffn_residual_params
    flops = 2.0 * (rows * of_mixer + after.rank * of_ffn)
    moved = (rows * of_mixer + after.rank * of_ffn) / kind.residual_params * d_model * 8.0 * streams
    weights = (of_mixer + after.share_read * of_ffn) * bytes_per_value(precision.head)
    out.append(Kernel("residual", "head", kind.count, 4.0, flops, flops, weights, 0.0, moved))


def _exchange(
    out: list[Collective], kind: LayerKind, rows: Num, after: Num, layout: Layout, precision: Precision, d_model: int
) -> None:
    """`rows` of them meet attention, `after` what follows."""
    if not all_true(layout.tp == 1):
        per_layer = (1.0 if kind.mixer_params else 0.0) + (1.0 if kind.dense or kind.moe else 0.0)
        repeats = (layout.tp > 1) * kind.count * per_layer
        out.append(Collective("tp_all_reduce", "all_reduce", repeats, after * d_model * 2.0, layout.tp))
        if kind.gqa and kind.gqa.qk_norm == "full":  # the mean square of a row whose heads lie on all ranks
            out.append(Collective("tp_all_reduce", "all_reduce", (layout.tp > 1) * kind.count, rows * 8.0, layout.tp))
    if kind.moe and not all_true(layout.dp_attention == 1):
        width = kind.moe.latent_dim or d_model
        per_pair = width * (bytes_per_value(precision.dispatch) + bytes_per_value(precision.combine))
        sent = after / layout.tp * kind.moe.top_k * per_pair / 2.0  # half on the way out, half on the way back
        out.append(
            Collective(
                "ep_all_to_all", "all_to_all", (layout.dp_attention > 1) * 2.0 * kind.count, sent, layout.stage_chips
            )
        )
