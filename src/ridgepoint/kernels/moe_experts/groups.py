# mypy: disallow-untyped-defs=False
"""Which rows each expert works on, found on the device: no count ever reaches the host, and every size is a capacity.

The M = T K (token, expert) pairs are sorted by expert, stably, and each expert's rows start at a multiple of a unit, so that a
tile of a product belongs to one expert and may be stored whole. Rows that an expert has too many hold nothing that counts.
An expert's rows are cut into blocks of BLOCK_M; with a smaller unit what is left makes short blocks of one unit, in a table of
their own, because a tile's height is fixed when its kernel is compiled. For a kernel that can pass over units that a block lacks
what is left makes one lower block, in the same table. Small batches take one launch, others three (counts per
chunk, sums over chunks, places).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import after_previous, overlapped

CHUNK = 128  # pairs whose ranks are found by comparing all with all: 64 comparisons a thread
ALIGNED = (
    4  # entries: rows of a table start at multiples of 16 bytes, or alignment would be one more thing to compile for
)
SMALL = 512  # pairs up to which one program does everything


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The first `count` entries are blocks: `rows` of `block_m` rows from `start` on belong to `expert`."""

    block_m: int
    table: torch.Tensor  # [expert, start, rows][capacity]
    count: torch.Tensor

    @property
    def capacity(self) -> int:
        return self.table.shape[1]

    @property
    def expert(self) -> torch.Tensor:
        return self.table[0]

    @property
    def start(self) -> torch.Tensor:
        return self.table[1]

    @property
    def rows(self) -> torch.Tensor:
        return self.table[2]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """`row_pair[r]` is the pair in row r (undefined where no block has a pair), `pair_row` its inverse."""

    row_pair: torch.Tensor
    pair_row: torch.Tensor
    tables: tuple[Blocks, ...]

    @property
    def capacity_rows(self) -> int:
        return self.row_pair.shape[0]


def group_rows(
    expert_ids_TK: torch.Tensor, num_experts: int, block_m: int, unit: int | None = None, lower: bool = False
) -> Groups:
    """Blocks of `block_m` rows and, where `unit` is smaller, short ones of `unit` rows for what is left of each expert; or with
    `lower` one block for all that is left."""
    unit = unit or block_m
    num_pairs, device = expert_ids_TK.numel(), expert_ids_TK.device
    used = min(num_pairs, num_experts)
    units, per_block = (num_pairs + used * (unit - 1)) // unit, block_m // unit

    def table(height: int, blocks: int) -> Blocks:
        capacity = -(-max(1, blocks) // ALIGNED) * ALIGNED
        return Blocks(
            block_m=height,
            table=torch.empty(3, capacity, dtype=torch.int32, device=device),
            count=torch.empty(1, dtype=torch.int32, device=device),
        )

    tall = table(block_m, (units + used * (per_block - 1) * lower) // per_block)
    short = table(unit, used * (per_block - 1)) if per_block > 1 and not lower else None
    groups = Groups(
        row_pair=torch.empty(units * unit, dtype=torch.int32, device=device),
        pair_row=torch.empty(num_pairs, dtype=torch.int32, device=device),
        tables=(tall,) if short is None else (tall, short),
    )
    _launch(expert_ids_TK.reshape(-1), groups, tall, short, max(32, triton.next_power_of_2(num_experts)), unit)
    return groups


def _launch(ids: torch.Tensor, groups: Groups, tall: Blocks, short: Blocks | None, experts: int, unit: int) -> None:
    num_pairs, device = ids.numel(), ids.device
    chunk = min(CHUNK, max(16, triton.next_power_of_2(num_pairs)))
    capacities = (tall.capacity, 0 if short is None else short.capacity)
    tables = (
        tall.table, tall.count, capacities[0], None if short is None else short.table,
        None if short is None else short.count, capacities[1],
    )  # fmt: skip
    sizes = {"EXPERTS": experts, "CHUNK": chunk, "num_warps": 8 if chunk == CHUNK else 4}
    heights = {"BLOCK_M": tall.block_m, "UNIT": unit}
    if num_pairs <= SMALL:
        _group_small[(1,)](
            ids, groups.row_pair, groups.pair_row, *tables, num_pairs, **heights, **sizes, **overlapped()
        )
        return
    chunks = triton.cdiv(num_pairs, chunk)
    counts = torch.empty(chunks, experts, dtype=torch.int32, device=device)
    totals = torch.empty(experts, dtype=torch.int32, device=device)
    _count[(chunks,)](ids, counts, num_pairs, **sizes, **overlapped())
    _sum_over_chunks[(experts,)](counts, totals, chunks, EXPERTS=experts, **overlapped())
    programs = chunks + triton.cdiv(max(capacities), chunk)
    _place[(programs,)](
        ids,
        counts,
        totals,
        groups.row_pair,
        groups.pair_row,
        *tables,
        num_pairs,
        chunks,
        **heights,
        **sizes,
        **overlapped(),
    )


@triton.jit
def _load_ids(ids, first, num_pairs, CHUNK: tl.constexpr):
    """Pairs, whether they exist, and their experts (-1 for those that do not)."""
    pairs = first + tl.arange(0, CHUNK)
    present = pairs < num_pairs
    return pairs, present, tl.load(ids + pairs, mask=present, other=-1).to(tl.int32)


@triton.jit
def _count_of(chosen, present, EXPERTS: tl.constexpr):
    """How many of `chosen` each expert has."""
    return tl.histogram(tl.where(present, chosen, 0), EXPERTS, mask=present)


@triton.jit
def _rank(chosen, CHUNK: tl.constexpr):
    """How many earlier ones of the chunk have the same expert."""
    place = tl.arange(0, CHUNK)
    same = (chosen[:, None] == chosen[None, :]) & (place[None, :] < place[:, None])
    return tl.sum(same.to(tl.int32), axis=1)


@triton.jit
def _expert_of_block(ends_E, block, EXPERTS: tl.constexpr):
    """The first expert whose blocks end after `block`, by halving; the last one where there is none."""
    expert = tl.zeros_like(block)
    step = EXPERTS // 2
    while step > 0:
        passed = tl.gather(ends_E, expert + step - 1, 0) <= block
        expert = tl.where(passed, expert + step, expert)
        step = step // 2
    return expert


@triton.jit
def _first_rows(totals, UNIT: tl.constexpr):
    """The row each expert starts at."""
    units_E = (totals + UNIT - 1) // UNIT
    return (tl.cumsum(units_E, 0) - units_E) * UNIT


@triton.jit
def _fill_table(
    totals, first_block, table, count, capacity, TALL: tl.constexpr, LOWER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr,
    UNIT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Entries [first_block, first_block + CHUNK) of a table: an expert's blocks end where the running sum does."""
    units_E = (totals + UNIT - 1) // UNIT
    tall_E = (units_E + (BLOCK_M // UNIT - 1 if LOWER else 0)) // (BLOCK_M // UNIT)
    HEIGHT: tl.constexpr = BLOCK_M if TALL else UNIT
    if TALL:
        blocks_E = tall_E
        before_E = tl.zeros_like(tall_E)
    else:
        blocks_E = units_E % (BLOCK_M // UNIT)
        before_E = tall_E * BLOCK_M  # rows of the expert that tall blocks hold
    ends = tl.cumsum(blocks_E, 0)
    block = first_block + tl.arange(0, CHUNK)
    total = tl.sum(blocks_E, 0)
    expert = _expert_of_block(ends, block, EXPERTS)
    within = (block - tl.gather(ends - blocks_E, expert, 0)) * HEIGHT + tl.gather(before_E, expert, 0)
    used = block < tl.minimum(total, capacity)
    tl.store(table + block, expert, mask=used)
    tl.store(table + capacity + block, tl.gather(_first_rows(totals, UNIT), expert, 0) + within, mask=used)
    tl.store(table + 2 * capacity + block, tl.minimum(tl.gather(totals, expert, 0) - within, HEIGHT), mask=used)
    if first_block == 0:
        tl.store(count, total)


@triton.jit
def _fill_tables(
    totals, first_block, tall, tall_count, tall_capacity, short, short_count, short_capacity,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    LOWER: tl.constexpr = short is None  # what is left of an expert is a lower block, not short ones
    _fill_table(totals, first_block, tall, tall_count, tall_capacity, True, LOWER, EXPERTS, BLOCK_M, UNIT, CHUNK)
    if not LOWER:
        _fill_table(
            totals, first_block, short, short_count, short_capacity, False, LOWER, EXPERTS, BLOCK_M, UNIT, CHUNK
        )


@triton.jit
def _store_places(row_pair, pair_row, pairs, present, rows):
    tl.store(pair_row + pairs, rows, mask=present)
    tl.store(row_pair + rows, pairs, mask=present)


@triton.jit(do_not_specialize=["tall_capacity", "short_capacity", "num_pairs"])
def _group_small(
    ids, row_pair, pair_row, tall, tall_count, tall_capacity, short, short_count, short_capacity, num_pairs,
    BLOCK_M: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    after_previous()
    totals = tl.zeros((EXPERTS,), tl.int32)
    for first in tl.range(0, num_pairs, CHUNK):
        _, present, chosen = _load_ids(ids, first, num_pairs, CHUNK)
        totals += _count_of(chosen, present, EXPERTS)
    for first in tl.range(0, tl.maximum(tall_capacity, short_capacity), CHUNK):
        _fill_tables(totals, first, tall, tall_count, tall_capacity, short, short_count, short_capacity,
                     EXPERTS, BLOCK_M, UNIT, CHUNK)  # fmt: skip
    next_row = _first_rows(totals, UNIT)
    for first in tl.range(0, num_pairs, CHUNK):
        pairs, present, chosen = _load_ids(ids, first, num_pairs, CHUNK)
        rows = tl.gather(next_row, tl.where(present, chosen, 0), 0) + _rank(chosen, CHUNK)
        _store_places(row_pair, pair_row, pairs, present, rows)
        next_row += _count_of(chosen, present, EXPERTS)


@triton.jit(do_not_specialize=["num_pairs"])
def _count(ids, counts, num_pairs, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    after_previous()
    chunk = tl.program_id(0)
    _, present, chosen = _load_ids(ids, chunk * CHUNK, num_pairs, CHUNK)
    tl.store(counts + chunk * EXPERTS + tl.arange(0, EXPERTS), _count_of(chosen, present, EXPERTS))


@triton.jit(do_not_specialize=["num_chunks"])
def _sum_over_chunks(counts, totals, num_chunks, EXPERTS: tl.constexpr):
    """Counts of one expert become the numbers of its pairs in earlier chunks."""
    after_previous()
    STEP: tl.constexpr = 1024
    expert = tl.program_id(0)
    total = tl.zeros((), tl.int32)
    for first in tl.range(0, num_chunks, STEP):
        chunk = first + tl.arange(0, STEP)
        at = counts + chunk * EXPERTS + expert
        count = tl.load(at, mask=chunk < num_chunks, other=0)
        tl.store(at, total + tl.cumsum(count, 0) - count, mask=chunk < num_chunks)
        total += tl.sum(count, 0)
    tl.store(totals + expert, total)


@triton.jit(do_not_specialize=["tall_capacity", "short_capacity", "num_pairs", "num_chunks"])
def _place(
    ids, counts, totals, row_pair, pair_row, tall, tall_count, tall_capacity, short, short_count, short_capacity,
    num_pairs, num_chunks,
    BLOCK_M: tl.constexpr, UNIT: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The first programs place a chunk of pairs each, the others write the tables of blocks."""
    after_previous()
    chunk = tl.program_id(0)
    totals_E = tl.load(totals + tl.arange(0, EXPERTS))
    if chunk < num_chunks:
        pairs, present, chosen = _load_ids(ids, chunk * CHUNK, num_pairs, CHUNK)
        next_row = _first_rows(totals_E, UNIT) + tl.load(counts + chunk * EXPERTS + tl.arange(0, EXPERTS))
        rows = tl.gather(next_row, tl.where(present, chosen, 0), 0) + _rank(chosen, CHUNK)
        _store_places(row_pair, pair_row, pairs, present, rows)
    else:
        _fill_tables(totals_E, (chunk - num_chunks) * CHUNK, tall, tall_count, tall_capacity, short, short_count,
                     short_capacity, EXPERTS, BLOCK_M, UNIT, CHUNK)  # fmt: skip
