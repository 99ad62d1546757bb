# mypy: disallow-untyped-defs=False
"""A step's attention work, listed by the device for itself: no number of it is read by the host.

A sequence with few queries is *short*: its keys are cut into splits that run side by side and are combined. One with more is
*long*: its queries are cut into tiles, each of which passes over its keys alone. Lists have room for the worst case of
the shapes, so that a recorded step can replay with other contexts; how full they are is a number on the device.

Unless a path asks for `parts`, how a sequence is cut depends on its own queries, context and window alone, never on its
company: the sums of a token are then the same whoever is served beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.kernels.triton_call import after_previous, overlapped

SPLIT_TOKENS = 256  # keys in a split: long enough that its partial result adds 3 % to the bytes of a group of 8 heads
MAX_SPLITS = 32  # of one sequence; beyond that its splits grow instead
SPLIT_STEP = 128  # and grow by whole tiles
SEQS = 256  # looked at together while a list is made
MAX_ROUNDS = 4  # in which the parts of a step may run
LENGTHS = 8  # tried for each number of rounds, each an eighth longer than the last
SPLIT_COST = 128  # keys that take as long as a split's start and end


class Lift(NamedTuple):
    """When the keys of a long sequence are lifted out of their latents instead of its queries being moved into these: in
    multiply-adds, what lifting one key costs (moving one query costs as much), and what it saves for each query that sees it."""

    key_cost: int
    pair_gain: int
    key_tile: int  # keys lifted together


class Cut(NamedTuple):
    """How a path cuts sequences: up to `short_queries` queries are a short one, else tiles of `tile_queries`.

    With `parts`, that many splits run at once, and the length of all is the one with which the step is over first: for paths
    whose partial results are too large to have more of them than keep the device busy. With `lift`, sequences that are lifted are
    in no list, or with `lifted` in both and alone there: their keys as splits of `key_tile`, their queries as tiles."""

    window: int | None
    short_queries: int
    tile_queries: int
    parts: int = 0
    split_keys: int = SPLIT_TOKENS  # keys of a split, unless there are parts or too many
    lift: Lift | None = None
    lifted: bool = False


@dataclass(frozen=True)
class Work:
    """Short items are (sequence, split), long ones (sequence, tile). `counts` says how many of each there are; the
    splits of sequence b are short items from `first_item_B[b]` on and have `split_tokens_B[b]` keys, the last one fewer."""

    short_items: torch.Tensor
    long_items: torch.Tensor
    first_item_B: torch.Tensor
    split_tokens_B: torch.Tensor
    counts: torch.Tensor


@dataclass
class Plan:
    query_starts_B1: torch.Tensor
    context_lens_B: torch.Tensor
    block_tables_BN: torch.Tensor
    block_tokens: int
    known: Known | None = None
    _work: dict[Cut, Work] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        return self.context_lens_B.shape[0]

    def has_only_long(self, cut: Cut) -> bool:
        """Whether the host knows that no sequence is short and no row padding: splits would find nothing, nor would who joins them."""
        return self.known is not None and self.known.least_queries > cut.short_queries

    def has_only_lifted(self, lift: Lift, window: int | None) -> bool:
        """Whether the host knows that every sequence is long and lifted: the one with the fewest queries behind the most tokens gains
        least (`_is_lifted`)."""
        if self.known is None or self.known.least_queries <= 1:
            return False
        least, cached = self.known
        keys = least + cached
        return cached * lift.key_cost < min(keys, window or keys) * least * lift.pair_gain

    def work(self, cut: Cut, num_tokens: int) -> Work:
        """The step's work cut this way, listed when the first layer asks."""
        if cut not in self._work:
            self._work[cut] = self._list(cut, num_tokens)
        return self._work[cut]

    def _list(self, cut: Cut, num_tokens: int) -> Work:
        num_seqs, device = self.num_seqs, self.context_lens_B.device
        items, tiles = self._capacities(cut, num_tokens)

        def int32(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        work = Work(int32(items, 2), int32(tiles, 2), int32(num_seqs), int32(num_seqs), int32(2))
        if num_seqs:
            list_work[(num_seqs,)](
                self.query_starts_B1, self.context_lens_B, work.short_items, work.long_items, work.first_item_B,
                work.split_tokens_B, work.counts, num_seqs, cut.window or 0, cut.short_queries, cut.tile_queries, cut.parts,
                cut.lift.key_cost if cut.lift else 0, cut.lift.pair_gain if cut.lift else 0,
                SPLIT=cut.split_keys, STEP=SPLIT_STEP, MAX_SPLITS=MAX_SPLITS, SEQS=SEQS, ROUNDS=MAX_ROUNDS, LENGTHS=LENGTHS,
                COST=SPLIT_COST, KEY_TILE=cut.lift.key_tile if cut.lift and cut.lifted else 0, **overlapped(),
            )  # fmt: skip
        return work

    def _capacities(self, cut: Cut, num_tokens: int) -> tuple[int, int]:
        """The most short and long items that sequences of these shapes can have."""
        num_seqs = self.num_seqs
        most_keys = self.block_tables_BN.shape[1] * self.block_tokens
        tiles = 0 if num_tokens == num_seqs else num_tokens // cut.tile_queries + min(num_seqs, num_tokens)
        if cut.lift and cut.lifted:
            # keys - queries < queries keys pair_gain / key_cost, or it would not be lifted: summed over sequences
            keys = int(num_tokens * (1 + most_keys * cut.lift.pair_gain / cut.lift.key_cost))
            each = -(-most_keys // cut.lift.key_tile)
            return min(num_seqs * each, keys // cut.lift.key_tile + min(num_seqs, num_tokens)) if tiles else 0, tiles
        if cut.window is not None:
            most_keys = min(most_keys, cut.window + cut.short_queries - 1)
        splits = min(MAX_SPLITS, -(-most_keys // cut.split_keys))
        items = num_seqs * splits if not cut.parts else min(num_seqs * splits, num_seqs + MAX_ROUNDS * cut.parts)
        return items, tiles


@triton.jit
def first_key(position, window):
    """The oldest key that a query at `position` sees; a window of 0 is none."""
    return tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)


@triton.jit
def _load_sequences(starts_ptr, contexts_ptr, base, num_seqs, window, SEQS: tl.constexpr):
    """Places, queries and visible keys of SEQS sequences from `base` on."""
    i = base + tl.arange(0, SEQS)
    live = i < num_seqs
    start = tl.load(starts_ptr + i, mask=live, other=0).to(tl.int32)
    queries = tl.load(starts_ptr + i + 1, mask=live, other=0).to(tl.int32) - start
    context = tl.load(contexts_ptr + i, mask=live, other=0).to(tl.int32)
    return i, queries, context - first_key(context - queries, window)


@triton.jit
def _soonest(
    starts_ptr, contexts_ptr, num_seqs, window, short_queries, parts, SPLIT: tl.constexpr, STEP: tl.constexpr,
    MAX_SPLITS: tl.constexpr, SEQS: tl.constexpr, ROUNDS: tl.constexpr, LENGTHS: tl.constexpr, COST: tl.constexpr,
):  # fmt: skip
    """The length of splits with which `parts` at a time are done first; of equal ones the longest, which joins least."""
    all_keys = tl.full((), 0, tl.int64)
    for base in range(0, num_seqs, SEQS):
        _, queries, num_keys = _load_sequences(starts_ptr, contexts_ptr, base, num_seqs, window, SEQS)
        all_keys += tl.sum(tl.where((queries > 0) & (queries <= short_queries), num_keys, 0).to(tl.int64))
    i_L = tl.arange(0, ROUNDS * LENGTHS)
    share_L = tl.cdiv(all_keys * (LENGTHS + i_L % LENGTHS), LENGTHS * parts * (1 + i_L // LENGTHS)).to(tl.int32)
    length_L = tl.cdiv(tl.maximum(share_L, SPLIT), STEP) * STEP
    items_L = tl.zeros_like(length_L)
    for base in range(0, num_seqs, SEQS):
        _, queries, num_keys = _load_sequences(starts_ptr, contexts_ptr, base, num_seqs, window, SEQS)
        short_keys = tl.where((queries > 0) & (queries <= short_queries), num_keys, 0)
        own_SL = tl.maximum(length_L[None, :], tl.cdiv(tl.cdiv(short_keys, MAX_SPLITS), STEP)[:, None] * STEP)
        items_L += tl.sum(tl.cdiv(short_keys[:, None], own_SL), 0)
    cost_L = tl.cdiv(items_L, parts).to(tl.int64) * (length_L + COST)
    return tl.max(tl.where(cost_L == tl.min(cost_L, 0), length_L, 0), 0)


@triton.jit
def _is_lifted(queries, num_keys, window, key_cost, pair_gain):
    """Never where both are 0."""
    seen = tl.where(window > 0, tl.minimum(num_keys, window), num_keys).to(tl.int64)
    return (num_keys - queries).to(tl.int64) * key_cost < seen * queries * pair_gain


@triton.jit(do_not_specialize=["num_seqs", "window", "short_queries", "tile_queries", "parts", "key_cost", "pair_gain"])
def list_work(
    starts_ptr, contexts_ptr, short_ptr, long_ptr, first_item_ptr, split_tokens_ptr, counts_ptr,
    num_seqs, window, short_queries, tile_queries, parts, key_cost, pair_gain,
    SPLIT: tl.constexpr, STEP: tl.constexpr, MAX_SPLITS: tl.constexpr, SEQS: tl.constexpr, ROUNDS: tl.constexpr,
    LENGTHS: tl.constexpr, COST: tl.constexpr, KEY_TILE: tl.constexpr,
):  # fmt: skip
    """Program b counts the items of the sequences before it and writes its own after them."""
    after_previous()
    b = tl.program_id(0)
    least = tl.full((), SPLIT, tl.int32)
    if parts > 0:
        least = _soonest(
            starts_ptr, contexts_ptr, num_seqs, window, short_queries, parts, SPLIT, STEP, MAX_SPLITS, SEQS, ROUNDS, LENGTHS,
            COST,
        )  # fmt: skip
    short_before, long_before, num_short, num_long, own_short, own_long, own_length = 0, 0, 0, 0, 0, 0, 0
    for base in range(0, num_seqs, SEQS):
        i, queries, num_keys = _load_sequences(starts_ptr, contexts_ptr, base, num_seqs, window, SEQS)
        lifted = (queries > short_queries) & _is_lifted(queries, num_keys, window, key_cost, pair_gain)
        if KEY_TILE > 0:
            length = tl.full((SEQS,), KEY_TILE, tl.int32)
            splits = tl.where(lifted, tl.cdiv(num_keys, KEY_TILE), 0)
            tiles = tl.where(lifted, tl.cdiv(queries, tile_queries), 0)
        else:
            length = tl.cdiv(tl.maximum(least, tl.cdiv(num_keys, MAX_SPLITS)), STEP) * STEP
            splits = tl.where((queries > 0) & (queries <= short_queries), tl.cdiv(num_keys, length), 0)
            tiles = tl.where((queries > short_queries) & ~lifted, tl.cdiv(queries, tile_queries), 0)
        short_before += tl.sum(tl.where(i < b, splits, 0))
        long_before += tl.sum(tl.where(i < b, tiles, 0))
        own_short += tl.sum(tl.where(i == b, splits, 0))
        own_long += tl.sum(tl.where(i == b, tiles, 0))
        own_length += tl.sum(tl.where(i == b, length, 0))
        num_short += tl.sum(splits)
        num_long += tl.sum(tiles)
    tl.store(first_item_ptr + b, short_before)
    tl.store(split_tokens_ptr + b, own_length)
    for base in range(0, own_short, SEQS):
        i = base + tl.arange(0, SEQS)
        tl.store(short_ptr + 2 * (short_before + i), b, mask=i < own_short)
        tl.store(short_ptr + 2 * (short_before + i) + 1, i, mask=i < own_short)
    for base in range(0, own_long, SEQS):
        i = base + tl.arange(0, SEQS)
        # Last tile first: it has the most keys, and what starts last should be small.
        tl.store(long_ptr + 2 * (long_before + i), b, mask=i < own_long)
        tl.store(long_ptr + 2 * (long_before + i) + 1, own_long - 1 - i, mask=i < own_long)
    if b == 0:
        tl.store(counts_ptr, num_short)
        tl.store(counts_ptr + 1, num_long)
