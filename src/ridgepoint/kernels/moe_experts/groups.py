# mypy: disallow-untyped-defs=False
"""Which rows each expert works on, found on the device: no count ever reaches the host, and every size is a capacity.

The M = T K (token, expert) pairs are sorted by expert, stably, and each expert's rows start a new block of BLOCK_M rows: a tile
of a product then belongs to one expert, and tiles may be stored whole. Rows that a block has too many hold nothing that counts.
Small batches take one launch, others three (counts per chunk, sums over chunks, places).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 128  # pairs whose ranks are found by comparing all with all: 64 comparisons a thread
SMALL = 512  # pairs up to which one program does everything


@dataclass(frozen=True, kw_only=True)
class Groups:
    """`row_pair[r]` is the pair in row r (undefined beyond `block_rows` of its block), `pair_row` its inverse."""

    block_m: int
    row_pair: torch.Tensor
    pair_row: torch.Tensor
    block_expert: torch.Tensor
    block_rows: torch.Tensor
    num_blocks: torch.Tensor

    @property
    def capacity_rows(self) -> int:
        return self.block_expert.shape[0] * self.block_m

    @property
    def capacity_blocks(self) -> int:
        return self.block_expert.shape[0]


def group_rows(expert_ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Groups:
    num_pairs, device = expert_ids_TK.numel(), expert_ids_TK.device
    capacity = max(1, (num_pairs + min(num_pairs, num_experts) * (block_m - 1)) // block_m)
    row_pair, pair_row, block_expert, block_rows, num_blocks = (
        torch.empty(size, dtype=torch.int32, device=device)
        for size in (capacity * block_m, num_pairs, capacity, capacity, 1)
    )
    ids = expert_ids_TK.reshape(-1)
    experts = max(32, triton.next_power_of_2(num_experts))
    chunk = min(CHUNK, max(16, triton.next_power_of_2(num_pairs)))
    sizes = {"EXPERTS": experts, "BLOCK_M": block_m, "CHUNK": chunk, "num_warps": 8 if chunk == CHUNK else 4}
    if num_pairs <= SMALL:
        _group_small[(1,)](ids, row_pair, pair_row, block_expert, block_rows, num_blocks, num_pairs, capacity, **sizes)
    else:
        chunks = triton.cdiv(num_pairs, CHUNK)
        counts = torch.empty(chunks, experts, dtype=torch.int32, device=device)
        totals = torch.empty(experts, dtype=torch.int32, device=device)
        _count[(chunks,)](ids, counts, num_pairs, **sizes)
        _sum_over_chunks[(experts,)](counts, totals, chunks, EXPERTS=experts)
        programs = chunks + triton.cdiv(capacity, CHUNK)
        _place[(programs,)](
            ids, counts, totals, row_pair, pair_row, block_expert, block_rows, num_blocks, num_pairs, chunks, capacity,
            **sizes,
        )  # fmt: skip
    return Groups(
        block_m=block_m, row_pair=row_pair, pair_row=pair_row, block_expert=block_expert, block_rows=block_rows,
        num_blocks=num_blocks,
    )  # fmt: skip


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
def _fill_blocks(
    totals, first_block, block_expert, block_rows, num_blocks, capacity,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The table of blocks [first_block, first_block + CHUNK): an expert's blocks end where the running sum does."""
    blocks_E = (totals + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(blocks_E, 0)
    block = first_block + tl.arange(0, CHUNK)
    total = tl.sum(blocks_E, 0)
    expert = _expert_of_block(ends, block, EXPERTS)
    start = tl.gather(ends - blocks_E, expert, 0)
    rows = tl.minimum(tl.gather(totals, expert, 0) - (block - start) * BLOCK_M, BLOCK_M)
    used = block < tl.minimum(total, capacity)
    tl.store(block_expert + block, expert, mask=used)
    tl.store(block_rows + block, rows, mask=used)
    if first_block == 0:
        tl.store(num_blocks, total)


@triton.jit
def _first_rows(totals, BLOCK_M: tl.constexpr):
    """The row each expert starts at."""
    blocks_E = (totals + BLOCK_M - 1) // BLOCK_M
    return (tl.cumsum(blocks_E, 0) - blocks_E) * BLOCK_M


@triton.jit
def _store_places(row_pair, pair_row, pairs, present, rows):
    tl.store(pair_row + pairs, rows, mask=present)
    tl.store(row_pair + rows, pairs, mask=present)


@triton.jit(do_not_specialize=["num_pairs", "capacity"])
def _group_small(
    ids, row_pair, pair_row, block_expert, block_rows, num_blocks, num_pairs, capacity,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    totals = tl.zeros((EXPERTS,), tl.int32)
    for first in tl.range(0, num_pairs, CHUNK):
        _, present, chosen = _load_ids(ids, first, num_pairs, CHUNK)
        totals += _count_of(chosen, present, EXPERTS)
    for first in tl.range(0, capacity, CHUNK):
        _fill_blocks(totals, first, block_expert, block_rows, num_blocks, capacity, EXPERTS, BLOCK_M, CHUNK)
    next_row = _first_rows(totals, BLOCK_M)
    for first in tl.range(0, num_pairs, CHUNK):
        pairs, present, chosen = _load_ids(ids, first, num_pairs, CHUNK)
        rows = tl.gather(next_row, tl.where(present, chosen, 0), 0) + _rank(chosen, CHUNK)
        _store_places(row_pair, pair_row, pairs, present, rows)
        next_row += _count_of(chosen, present, EXPERTS)


@triton.jit(do_not_specialize=["num_pairs"])
def _count(ids, counts, num_pairs, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    _, present, chosen = _load_ids(ids, chunk * CHUNK, num_pairs, CHUNK)
    tl.store(counts + chunk * EXPERTS + tl.arange(0, EXPERTS), _count_of(chosen, present, EXPERTS))


@triton.jit(do_not_specialize=["num_chunks"])
def _sum_over_chunks(counts, totals, num_chunks, EXPERTS: tl.constexpr):
    """Counts of one expert become the numbers of its pairs in earlier chunks."""
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


@triton.jit(do_not_specialize=["num_pairs", "num_chunks", "capacity"])
def _place(
    ids, counts, totals, row_pair, pair_row, block_expert, block_rows, num_blocks, num_pairs, num_chunks, capacity,
    EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The first programs place a chunk of pairs each, the others write the table of blocks."""
    chunk = tl.program_id(0)
    totals_E = tl.load(totals + tl.arange(0, EXPERTS))
    if chunk < num_chunks:
        pairs, present, chosen = _load_ids(ids, chunk * CHUNK, num_pairs, CHUNK)
        next_row = _first_rows(totals_E, BLOCK_M) + tl.load(counts + chunk * EXPERTS + tl.arange(0, EXPERTS))
        rows = tl.gather(next_row, tl.where(present, chosen, 0), 0) + _rank(chosen, CHUNK)
        _store_places(row_pair, pair_row, pairs, present, rows)
    else:
        first_block = (chunk - num_chunks) * CHUNK
        _fill_blocks(totals_E, first_block, block_expert, block_rows, num_blocks, capacity, EXPERTS, BLOCK_M, CHUNK)
