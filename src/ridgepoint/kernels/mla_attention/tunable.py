"""Latent attention as the tuner sees it, absorbed: the splitting kernel at a number of decoding sequences, the tiling one on
sequences of several queries. Lifted prompts have one tile, which is not tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ridgepoint.kernels.mla_attention import gluon_seesaw, gluon_splits
from ridgepoint.kernels.mla_attention import triton as path
from ridgepoint.kernels.mla_attention.triton_lifted import lift_of
from ridgepoint.kernels.paged_attention.triton import KINDS, LARGEST, prepare
from ridgepoint.kernels.paged_attention.triton_plan import SPLIT_COST, SPLIT_STEP, SPLIT_TOKENS
from ridgepoint.kernels.tuning import AttentionTile, Config, choose
from ridgepoint.kernels.tuning.physics import ADDRESSES, Demand, processor_of, worth_timing
from ridgepoint.kernels.tuning.tuner import MOST, Call, Problem

EARLY = AttentionTile(gluon_splits.HEADS.value, gluon_splits.KEYS.value, warps=gluon_splits.WARPS, stages=3, early=True)
ROLES = AttentionTile(gluon_seesaw.HEADS.value, gluon_seesaw.KEYS.value, warps=gluon_seesaw.WARPS, stages=3, roles=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentLayer:
    """One layer's blocks of latents, its lifts, and how it attends."""

    kv: torch.Tensor
    block_tokens: int
    w_uk_HNC: torch.Tensor
    w_uv_HVC: torch.Tensor
    rope_dim: int
    scale: float
    window: int | None

    @property
    def num_heads(self) -> int:
        return self.w_uk_HNC.shape[0]

    @property
    def latent_dim(self) -> int:
        return self.w_uk_HNC.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.num_heads, self.latent_dim, self.rope_dim, self.window or 0

    @property
    def is_coded(self) -> bool:
        return self.kv.dtype in LARGEST


def decode_problem(layers: Sequence[LatentLayer], num_seqs: int, context: int, up_to: float) -> Problem:
    layer = layers[0]
    estimate = path.split_tile(layer.num_heads, layer.latent_dim, 2, layer.is_coded)
    return _problem(
        "mla_decode", layers, num_seqs, up_to, estimate, lambda best: split_tiles(layer, num_seqs, context, best),
        [context] * num_seqs, 1,
    )  # fmt: skip


def prompt_problem(layers: Sequence[LatentLayer], num_tokens: int, up_to: float) -> Problem:
    """A step of `num_tokens` queries, in sequences short enough after their context that none is lifted."""
    layer = layers[0]
    queries = absorbed_queries(layer, num_tokens)
    contexts = [num_tokens] * max(1, num_tokens // queries)
    estimate = path.query_tile(layer.latent_dim, 2, layer.is_coded)
    return _problem(
        "mla_prompt", layers, num_tokens, up_to, estimate, lambda best: query_tiles(layer, num_tokens, best), contexts,
        queries,
    )  # fmt: skip


def absorbed_queries(layer: LatentLayer, context: int) -> int:
    """Of a sequence at the end of `context` keys: half as many as would have these lifted, all where none are."""
    lift = lift_of(layer.latent_dim, layer.w_uk_HNC.shape[1], layer.w_uv_HVC.shape[1])
    if lift is None:
        return context
    seen = min(context, layer.window or context)
    least = seen * lift.key_cost / (lift.key_cost + seen * lift.pair_gain)  # that are
    return max(1, min(context, int(least / 2)))


def _problem(
    op: str, layers: Sequence[LatentLayer], size: int, up_to: float, estimate: AttentionTile,
    candidates: Callable[[AttentionTile], list[AttentionTile]], contexts: list[int], queries: int,
) -> Problem:  # fmt: skip
    layer = layers[0]
    kind = KINDS[layer.kv.dtype]
    best: AttentionTile = choose(op, kind, size, layer.shape, layer.kv.device, lambda: estimate)

    def around(config: Config) -> list[AttentionTile]:
        assert isinstance(config, AttentionTile)
        return candidates(config)

    return Problem(
        op=op, kind=kind, shape=layer.shape, size=size, up_to=up_to, estimate=best, rounds=(around,),
        calls=lambda: _calls(layers, contexts, queries),
    )  # fmt: skip


def split_tiles(layer: LatentLayer, num_seqs: int, context: int, best: AttentionTile) -> list[AttentionTile]:
    """Heads and latents of a tile, and programs beside each other; how keys are split the device decides for each step."""
    shape = layer.num_heads, layer.latent_dim, layer.rope_dim
    gluon = [ROLES, EARLY] if path.may_use_gluon(*shape, layer.kv.dtype) else []
    found = gluon + [
        AttentionTile(rows, keys, warps=warps, stages=stages, per_sm=per_sm)
        for rows, warps in ((64, 8), (32, 8), (16, 4))
        for keys in (32, 64, 16)
        for stages in (3, 5)
        for per_sm in (1, 2)
        if rows <= max(16, layer.num_heads) and (rows < 64 or not layer.is_coded)  # as in `query_tiles`
    ]
    keys_seen = min(context, layer.window or context)
    processor = processor_of(layer.kv.device)

    def demand_of(tile: AttentionTile) -> Demand:
        head_tiles = -(-layer.num_heads // tile.rows)
        split = _split_keys(num_seqs, keys_seen, max(1, tile.per_sm * processor.count // head_tiles))
        each = -(-keys_seen // split)
        splits = num_seqs * each
        width = layer.latent_dim + layer.rope_dim
        length = min(split, keys_seen)
        return Demand(
            warps=3 * tile.warps if tile.roles else tile.warps, per_processor=tile.per_sm, shared_bytes=_shared(layer, tile), accumulators=_registers(layer, tile),
            items=splits * head_tiles, item_bytes=length * width * layer.kv.element_size() / head_tiles,
            item_l2_bytes=length * width * layer.kv.element_size(), item_flops=2.0 * tile.rows * length * (width + layer.latent_dim), in_flight_bytes=_shared(layer, tile),
            addresses=_addresses(tile), more_bytes=splits * layer.num_heads * (2.0 * layer.latent_dim + 8) if each > 1 else 0.0,
        )  # fmt: skip

    return worth_timing(found, demand_of, processor, MOST, best)


def _split_keys(num_seqs: int, keys: int, parts: int) -> int:
    """The length of splits with which equal sequences are done first (see `triton_plan.Cut.parts`)."""
    lengths = range(SPLIT_TOKENS, max(SPLIT_TOKENS, keys) + SPLIT_STEP, SPLIT_STEP)
    return min(lengths, key=lambda n: (-(-num_seqs * -(-keys // n) // parts) * (n + SPLIT_COST), -n))


def query_tiles(layer: LatentLayer, num_tokens: int, best: AttentionTile) -> list[AttentionTile]:
    found = [
        AttentionTile(rows, keys, warps=warps, stages=stages)
        for rows, warps in ((64, 8), (128, 8), (32, 8), (64, 4))
        for keys in (32, 64, 16)
        for stages in (3, 5)
        if rows < 64 or not layer.is_coded  # codes are widened in registers that 64 rows of results do not leave
    ]

    keys_seen = min(num_tokens - absorbed_queries(layer, num_tokens) / 2, layer.window or num_tokens)  # by a query

    def demand_of(tile: AttentionTile) -> Demand:
        queries = max(1, tile.rows // layer.num_heads)
        tiles = -(-queries * layer.num_heads // tile.rows)
        return Demand(
            warps=tile.warps, per_processor=1, shared_bytes=_shared(layer, tile), accumulators=_registers(layer, tile),
            items=tiles * -(-num_tokens // queries), item_bytes=0.0, addresses=_addresses(tile),
            item_l2_bytes=keys_seen * (layer.latent_dim + layer.rope_dim) * layer.kv.element_size(),
            item_flops=2.0 * tile.rows * keys_seen * (2 * layer.latent_dim + layer.rope_dim), in_flight_bytes=1 << 20,
        )  # fmt: skip

    return worth_timing(found, demand_of, processor_of(layer.kv.device), MOST, best)


def _shared(layer: LatentLayer, tile: AttentionTile) -> int:
    """Queries stay in shared memory beside the latents on their way, whose block numbers are loaded a stage before them; the wide
    matrix instruction reads one tile more while it runs."""
    width = layer.latent_dim + layer.rope_dim
    tiles = (tile.stages + 1) // 2 if tile.rows >= 64 else (tile.stages - 1) // 2
    return tile.rows * width * 2 + tiles * tile.keys * width * layer.kv.element_size()


def _addresses(tile: AttentionTile) -> int:
    """Below 64 rows the latents of a tile pass through registers on their way to the matrix units (as compiled for sm_90). With roles it
    is what a thread of three groups has on average, of what the kernel gives them."""
    if tile.roles:
        given = 2 * gluon_seesaw.MULTIPLYING.value + gluon_seesaw.FETCHING.value
        return (given - 2 * (gluon_seesaw.HALF.value + tile.keys) * tile.rows // (32 * tile.warps)) // 3
    return ADDRESSES if tile.rows >= 64 else 160 + tile.keys // 2


def _registers(layer: LatentLayer, tile: AttentionTile) -> int:
    widened = tile.keys * layer.latent_dim // 2 if layer.is_coded else 0
    logits = 2 * tile.keys if tile.roles else tile.keys  # of either group
    return tile.rows * (layer.latent_dim + logits) + widened


def _calls(layers: Sequence[LatentLayer], contexts: Sequence[int], queries: int) -> list[Call]:
    layer = layers[0]
    device, size = layer.kv.device, layer.block_tokens
    num_seqs, columns = len(contexts), -(-max(contexts) // size)
    tables_BN = (torch.arange(num_seqs * columns, device=device) % layer.kv.shape[0]).view(num_seqs, columns)
    plan = prepare(
        torch.arange(num_seqs + 1, device=device) * queries,
        torch.tensor(contexts, dtype=torch.int64).to(device),
        tables_BN,
        size,
    )
    generator = torch.Generator(device=device).manual_seed(0)

    def queries_of(width: int) -> torch.Tensor:
        shape = (num_seqs * queries, layer.num_heads, width)
        return torch.randn(shape, device=device, generator=generator).bfloat16()

    return [
        partial(
            path.attend, queries_of(layer.w_uk_HNC.shape[1]), queries_of(layer.rope_dim), layer.kv, layer.w_uk_HNC, layer.w_uv_HVC,
            plan, layer.scale, layer.window,
        )
        for layer in layers
    ]  # fmt: skip
