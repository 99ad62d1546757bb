# mypy: disallow-untyped-defs=False
"""The weighted sum of each token's K rows, in the order of k, in float32, rounded once: no atomics, the same bits always."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.moe_experts.unsummed import Delta, UnsummedRows
from ridgepoint.kernels.triton_call import after_previous, overlapped

WIDTH = 1024  # columns a program sums: a bf16 row piece of 2 KB, four of which are in flight per thread


def summed(delta: Delta) -> torch.Tensor:
    """A launch that sums and does nothing else, unless there is nothing to sum."""
    if not isinstance(delta, UnsummedRows):
        return delta
    (num_tokens, top_k), width = delta.weights_TK.shape, delta.y_MD.shape[1]
    out_TD = delta.y_MD.new_empty(num_tokens, width)
    block = min(WIDTH, triton.next_power_of_2(width))
    _combine[(num_tokens, triton.cdiv(width, block))](
        delta.y_MD, delta.weights_TK, delta.pair_row, out_TD, width, top_k, block, **overlapped()
    )
    return out_TD


def rows_of(delta: Delta) -> torch.Tensor:
    return delta.y_MD if isinstance(delta, UnsummedRows) else delta


def sum_of(delta: Delta | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """(weights, rows, K) of what a kernel has to sum on its way; no K: nothing."""
    if not isinstance(delta, UnsummedRows):
        return None, None, 0
    return delta.weights_TK, delta.pair_row, delta.weights_TK.shape[1]


@triton.jit
def _combine(y, weights, pair_row, out, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    acc = sum_of_token(y, weights, pair_row, token, width, columns, inside, TOP_K, BLOCK)
    tl.store(out + token * width + columns, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_of_token(y, weights, pair_row, token, width, columns, inside, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """One token's sum over `columns`, in float32; rows are `width` apart."""
    acc = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        row = token * TOP_K + k
        if pair_row is not None:
            row = tl.load(pair_row + row).to(tl.int64)
        weight = tl.load(weights + token * TOP_K + k).to(tl.float32)
        acc += weight * tl.load(y + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    return acc
