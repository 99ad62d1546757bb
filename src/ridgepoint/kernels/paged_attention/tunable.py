"""Paged attention as the tuner sees it: the splitting kernel at a number of decoding sequences, the tiling one on a prompt.

In a step that is captured the number of sequences is known and their contexts are not, so buckets are of sequences, and a
split's length is part of the configuration. Within a bucket how a sequence is cut still depends on itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton

from ridgepoint.kernels.paged_attention import gluon_tiles
from ridgepoint.kernels.paged_attention import triton as path
from ridgepoint.kernels.tuning import AttentionTile, Config, choose
from ridgepoint.kernels.tuning.physics import Demand, processor_of, worth_timing
from ridgepoint.kernels.tuning.tuner import MOST, Call, Problem

SPLIT_ADDRESSES = 136  # registers of a thread: every key has a row of its own (as compiled for sm_90)
QUERY_ADDRESSES = 96
ROLES = AttentionTile(
    gluon_tiles.GROUPS.value * gluon_tiles.ROWS.value, gluon_tiles.KEYS.value, warps=gluon_tiles.WARPS, stages=2, roles=True
)  # fmt: skip
WIDENED = 1.45  # registers for each code of a tile (likewise)


@dataclass(frozen=True, kw_only=True, eq=False)
class PagedLayer:
    """One layer's blocks and how it attends to them. Layers that are tuned together differ in what their blocks hold."""

    kv: torch.Tensor
    block_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    sinks_H: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.num_heads, self.num_kv_heads, self.head_dim, self.window or 0

    @property
    def kind(self) -> str:
        return path.KINDS[self.kv.dtype]

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def is_coded(self) -> bool:
        return self.kv.dtype in path.LARGEST


def decode_problem(layers: Sequence[PagedLayer], num_seqs: int, context: int, up_to: float) -> Problem:
    """`num_seqs` sequences of `context` tokens, each asking for one more."""
    layer = layers[0]
    return _problem(
        "paged_decode", layers, num_seqs, up_to, path.split_tile(layer.head_dim, layer.group, layer.kv.element_size()),
        lambda best: split_tiles(layer, num_seqs, context, best), [context] * num_seqs, 1,
    )  # fmt: skip


def prompt_problem(layers: Sequence[PagedLayer], num_tokens: int, up_to: float) -> Problem:
    """One prompt of `num_tokens` tokens."""
    layer = layers[0]
    estimate = path.query_tile(layer.head_dim, layer.group, 2, layer.is_coded)
    return _problem(
        "paged_prompt", layers, num_tokens, up_to, estimate, lambda best: query_tiles(layer, num_tokens, best), [num_tokens],
        num_tokens,
    )  # fmt: skip


def _problem(
    op: str, layers: Sequence[PagedLayer], size: int, up_to: float, estimate: AttentionTile,
    candidates: Callable[[AttentionTile], list[AttentionTile]], contexts: list[int], queries: int,
) -> Problem:  # fmt: skip
    layer = layers[0]
    best: AttentionTile = choose(op, layer.kind, size, layer.shape, layer.kv.device, lambda: estimate)

    def around(config: Config) -> list[AttentionTile]:
        assert isinstance(config, AttentionTile)
        return candidates(config)

    return Problem(
        op=op, kind=layer.kind, shape=layer.shape, size=size, up_to=up_to, estimate=best, rounds=(around,),
        calls=lambda: _calls(layers, contexts, queries),
    )  # fmt: skip


def split_tiles(layer: PagedLayer, num_seqs: int, context: int, best: AttentionTile) -> list[AttentionTile]:
    """Tiles of keys, programs beside each other, and lengths of splits; the rows are those of a group of heads."""
    rows = path.split_tile(layer.head_dim, layer.group, layer.kv.element_size()).rows
    found = [
        AttentionTile(rows, keys, warps=4, stages=stages, per_sm=per_sm, split_keys=split)
        for keys in (32, 64, 128)
        for stages in (3, 5)
        for per_sm in (1, 2, 3, 4)
        for split in (128, 256, 512)
    ]
    keys_seen = min(context, layer.window or context)
    width, size = layer.head_dim, layer.kv.element_size()

    def demand_of(tile: AttentionTile) -> Demand:
        splits = -(-keys_seen // tile.split_keys)
        items = num_seqs * splits * layer.num_kv_heads
        return Demand(
            warps=tile.warps, per_processor=tile.per_sm, shared_bytes=_buffers(tile, width, size),
            accumulators=tile.rows * (width + tile.keys) + _widened(layer, tile), items=items,
            item_bytes=2.0 * min(tile.split_keys, keys_seen) * width * size,
            item_flops=4.0 * tile.rows * min(tile.split_keys, keys_seen) * width,
            in_flight_bytes=_buffers(tile, width, size), addresses=_split_addresses(tile), more_bytes=items * layer.group * (2.0 * width + 8),
        )  # fmt: skip

    return worth_timing(found, demand_of, processor_of(layer.kv.device), MOST, best)


def query_tiles(layer: PagedLayer, num_tokens: int, best: AttentionTile) -> list[AttentionTile]:
    """Warp groups of 64 rows, and tiles of keys."""
    least = triton.next_power_of_2(layer.group)
    found = [
        AttentionTile(max(rows, least), keys, warps=warps, stages=stages)
        for rows, warps in ((128, 8), (64, 4), (128, 4))
        for keys in (64, 128, 32)
        for stages in (2, 3)
    ]
    width, size = layer.head_dim, layer.kv.element_size()

    def demand_of(tile: AttentionTile) -> Demand:
        queries = max(1, tile.rows // layer.group)
        beside = max(1, min(2, 8 // tile.warps))  # programs of four warps share a multiprocessor
        return Demand(
            warps=tile.warps, per_processor=beside, shared_bytes=_buffers(replace(tile, stages=2 * tile.stages - 1), width, size),
            accumulators=tile.rows * (width + tile.keys) + _widened(layer, tile),
            items=-(-num_tokens // queries) * layer.num_kv_heads, item_bytes=0.0,
            item_l2_bytes=2.0 * (num_tokens / 2 + tile.keys) * width * size, item_flops=4.0 * tile.rows * (num_tokens / 2 + tile.keys) * width,  # the diagonal's tile is whole
            in_flight_bytes=1 << 20, addresses=QUERY_ADDRESSES,
        )  # fmt: skip

    kept = worth_timing(found, demand_of, processor_of(layer.kv.device), MOST, best)
    by_roles = path.may_take_roles(layer.head_dim, layer.group, layer.block_tokens, layer.kv.dtype)
    # What warps with roles gain the estimate does not know: they are tried in any case.
    return list(dict.fromkeys([best, *([ROLES] if by_roles else []), *kept]))[:MOST]


def _buffers(tile: AttentionTile, width: int, size: int) -> int:
    """Keys and values on their way. Block numbers are loaded a stage before the rows they point at, so a tile takes two."""
    return (tile.stages - 1) // 2 * 2 * tile.keys * triton.next_power_of_2(width) * size


def _split_addresses(tile: AttentionTile) -> int:
    """Keys pass through registers on their way to the matrix units, and past 64 of a tile those add up (as compiled for sm_90)."""
    return SPLIT_ADDRESSES + max(0, tile.keys - 64) * 3 // 4


def _widened(layer: PagedLayer, tile: AttentionTile) -> int:
    """Codes become float32 and 16-bit numbers in registers, each key in one thread's turn."""
    return int(WIDENED * tile.keys * layer.head_dim) if layer.is_coded else 0


def _calls(layers: Sequence[PagedLayer], contexts: Sequence[int], queries: int) -> list[Call]:
    """Each layer over sequences that lie in blocks of their own as far as there are enough."""
    layer = layers[0]
    device, size = layer.kv.device, layer.block_tokens
    num_seqs, columns = len(contexts), -(-max(contexts) // size)
    tables_BN = (torch.arange(num_seqs * columns, device=device) % layer.kv.shape[0]).view(num_seqs, columns)
    starts_B1 = torch.arange(num_seqs + 1, device=device) * queries
    contexts_B = torch.tensor(contexts, dtype=torch.int64).to(device)
    plan = path.prepare(starts_B1, contexts_B, tables_BN, size)
    generator = torch.Generator(device=device).manual_seed(0)
    return [
        partial(
            path.attend, torch.randn(num_seqs * queries, layer.num_heads, layer.head_dim, device=device, generator=generator).bfloat16(),
            layer.kv, plan, layer.scale, layer.window, layer.sinks_H,
        )
        for layer in layers
    ]  # fmt: skip
