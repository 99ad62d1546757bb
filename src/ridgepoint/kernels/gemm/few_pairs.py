# mypy: disallow-untyped-defs=False
"""Which rows each expert works on when there are few (token, expert) pairs: every program finds that out from the ids alone.

A launch that lists groups first would take longer than what it saves. Rows stay in the order of the pairs, so that nothing
is sorted: a block is up to BLOCK_M pairs of one expert, in their order, and starts at each pair whose rank among its
expert's is a multiple of that. Blocks are numbered by their first pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ROOM = 128  # pairs: all are compared with all, a fraction of a microsecond
TOGETHER = tl.constexpr(32)  # that all are compared with: more at once would take registers that sums and codes need


@dataclass(frozen=True, kw_only=True)
class FewPairs:
    """The pairs of a step, at most `ROOM`: the expert of each, token by token."""

    expert_ids: torch.Tensor

    @property
    def count(self) -> int:
        return len(self.expert_ids)


@triton.jit
def list_blocks(ids, num_pairs, BLOCK_M: tl.constexpr, PAIRS: tl.constexpr):
    """Of each pair its expert (-1: there is no such pair), its rank among that one's pairs, and the block that it starts (-1:
    none); then the number of blocks."""
    pair_P = tl.arange(0, PAIRS)
    present_P = pair_P < num_pairs
    expert_P = tl.load(ids + pair_P, mask=present_P, other=-1).to(tl.int32)
    rank_P = tl.zeros((PAIRS,), tl.int32)
    for first in range(0, PAIRS, TOGETHER):
        pair_N = first + tl.arange(0, TOGETHER)
        expert_N = tl.load(ids + pair_N, mask=pair_N < num_pairs, other=-1).to(tl.int32)
        earlier_PN = (expert_P[:, None] == expert_N[None, :]) & (pair_N[None, :] < pair_P[:, None])
        rank_P += tl.sum(earlier_PN.to(tl.int32), 1)
    starts_P = present_P & (rank_P % BLOCK_M == 0)
    block_P = tl.where(starts_P, tl.cumsum(starts_P.to(tl.int32), 0) - 1, -1)
    return expert_P, rank_P, block_P, tl.sum(starts_P.to(tl.int32), 0)


@triton.jit
def pairs_of(block, expert_P, rank_P, block_P, BLOCK_M: tl.constexpr, PAIRS: tl.constexpr):
    """The block's expert, its pairs in order, and how many there are."""
    start = tl.sum(tl.where(block_P == block, expert_P * PAIRS + rank_P, 0), 0)
    expert, first_rank = start // PAIRS, start % PAIRS
    in_block_P = tl.where(expert_P == expert, rank_P - first_rank, -1)
    here_MP = in_block_P[None, :] == tl.arange(0, BLOCK_M)[:, None]
    pairs_M = tl.sum(tl.where(here_MP, tl.arange(0, PAIRS)[None, :], 0), 1)
    return expert, pairs_M, tl.sum(((in_block_P >= 0) & (in_block_P < BLOCK_M)).to(tl.int32), 0)
