# mypy: disallow-untyped-defs=False
"""How fast all multiprocessors read what lies in the L2 cache: a buffer that fits is read over and over, by programs that are each
somewhere else in it, past their own L1 caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import INTERPRETED, num_multiprocessors

PIECE = 16384  # bytes that a program reads at a time
BUFFER_BYTES = (1 << 16) if INTERPRETED.value else (24 << 20)  # of both halves of the cache together, half
ROUNDS = 2 if INTERPRETED.value else 64


def l2_bytes_per_s(device: torch.device, best_s: Callable[[Callable[[], object]], float]) -> float:
    """`best_s` is the least time of a call."""
    source = torch.randn(BUFFER_BYTES // 4, device=device)
    programs = 4 * num_multiprocessors(device)
    sums = torch.empty(programs, device=device)
    pieces = BUFFER_BYTES // PIECE

    def read() -> None:
        read_pieces[(programs,)](source, sums, pieces, ROUNDS * pieces, PIECE=PIECE // 4, num_warps=8)

    return ROUNDS * BUFFER_BYTES / best_s(read)


@triton.jit
def read_pieces(source, sums, pieces, reads, PIECE: tl.constexpr):
    """Every program takes pieces in turn, round after round."""
    program, i_P = tl.program_id(0), tl.arange(0, PIECE)
    total_P = tl.zeros((PIECE,), tl.float32)
    for read in tl.range(program, reads, tl.num_programs(0), num_stages=1):
        total_P += tl.load(source + read % pieces * PIECE + i_P, cache_modifier=".cg")
    tl.store(sums + program, tl.sum(total_P, 0))
