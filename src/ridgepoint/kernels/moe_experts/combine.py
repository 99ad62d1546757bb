# mypy: disallow-untyped-defs=False
"""The weighted sum of each token's K rows, in the order of k, in float32, rounded once: no atomics, the same bits always."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import after_previous, overlapped

WIDTH = 1024  # columns a program sums: a bf16 row piece of 2 KB, four of which are in flight per thread


def combine(y_MD: torch.Tensor, weights_TK: torch.Tensor, pair_row: torch.Tensor | None) -> torch.Tensor:
    """`pair_row` is the row of each pair; None: they are in order."""
    (num_tokens, top_k), width = weights_TK.shape, y_MD.shape[1]
    out_TD = y_MD.new_empty(num_tokens, width)
    block = min(WIDTH, triton.next_power_of_2(width))
    weights_TK = weights_TK.contiguous()
    _combine[(num_tokens, triton.cdiv(width, block))](
        y_MD, weights_TK, pair_row, out_TD, width, top_k, block, **overlapped()
    )
    return out_TD


@triton.jit
def _combine(y, weights, pair_row, out, width, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    acc = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        row = token * TOP_K + k
        if pair_row is not None:
            row = tl.load(pair_row + row).to(tl.int64)
        weight = tl.load(weights + token * TOP_K + k).to(tl.float32)
        acc += weight * tl.load(y + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + columns, acc.to(out.dtype.element_ty), mask=inside)
