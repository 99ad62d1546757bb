# mypy: disallow-untyped-defs=False
"""Products with weight rows as the rows of the tile: every format, and few tokens, where memory is the roof.

The weight is the left operand, so that low-precision codes become numbers in the registers the matrix instruction reads
them from, and a block of tokens may be as narrow as 16. Every program streams its weight rows once over all inputs; as many
programs as fit keep loads in flight on every multiprocessor.

A row's result depends on its own inputs and on BLOCK_K alone: rows never meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgepoint.kernels.gemm.dequantise import dequantise, words_per_block
from ridgepoint.kernels.gemm.few_pairs import list_blocks, pairs_of
from ridgepoint.kernels.gemm.tiles import bias_of, block_at, gated, store_rows, tile_at
from ridgepoint.kernels.triton_call import after_previous


@triton.jit
def _weights(
    w, scales, matrix, first_row, k, inputs, part_rows, num_groups,
    KIND: tl.constexpr, GROUP_SIZE: tl.constexpr, SCALE_ROWS: tl.constexpr, TMA: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows [first_row, first_row + ROWS) of `matrix`, inputs [k BLOCK_K, (k + 1) BLOCK_K); zero beyond the matrix."""
    rows = first_row + tl.arange(0, ROWS)
    PER_BLOCK: tl.constexpr = BLOCK_K if KIND == "bf16" else words_per_block(KIND)
    if TMA:
        words = w.load([matrix, first_row, k * PER_BLOCK]).reshape(ROWS, PER_BLOCK)
    else:
        at = k * PER_BLOCK + tl.arange(0, PER_BLOCK)
        per_row = inputs if KIND == "bf16" else tl.cdiv(inputs, 128) * PER_BLOCK
        inside = (rows < part_rows)[:, None] & (at < per_row)[None, :]
        words = tl.load(
            w + (matrix.to(tl.int64) * part_rows + rows)[:, None] * per_row + at[None, :], mask=inside, other=0
        )
    if KIND == "bf16":
        return words
    elif GROUP_SIZE == 0:
        return dequantise(words, 1.0, KIND, ROWS, 0)
    elif SCALE_ROWS % ROWS == 0:  # one scale for the whole tile, loaded as a tile: a splat would stop the layout there
        at = (matrix.to(tl.int64) * num_groups + k) * tl.cdiv(part_rows, SCALE_ROWS) + first_row // SCALE_ROWS
        return dequantise(words, tl.load(scales + at + tl.zeros((1, 1), tl.int64)), KIND, ROWS, 0)
    else:
        GROUPS: tl.constexpr = 128 // GROUP_SIZE
        groups = k * GROUPS + tl.arange(0, GROUPS)
        at = (matrix.to(tl.int64) * num_groups + groups)[None, :] * tl.cdiv(part_rows, SCALE_ROWS)
        present = (rows < part_rows)[:, None] & (groups < num_groups)[None, :]
        factors = tl.load(scales + at + (rows // SCALE_ROWS)[:, None], mask=present, other=0)
        return dequantise(words, factors, KIND, ROWS, GROUPS)


@triton.jit
def _row_factor(scales, matrix, rows, part_rows):
    """The one scale of each row (formats without groups)."""
    return tl.load(scales + matrix.to(tl.int64) * part_rows + rows, mask=rows < part_rows, other=0.0)[:, None]


@triton.jit(do_not_specialize=["num_rows"])
def weight_tiles(
    x, x_stride, w, scales, bias, out, out_stride, row_pair, block_expert, block_start, block_rows, num_blocks_ptr, num_rows,
    inputs, part_rows, num_groups, alpha, limit,
    TOP_K: tl.constexpr, GROUPED: tl.constexpr, PAIRS: tl.constexpr, GATHER: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    KIND: tl.constexpr, GROUP_SIZE: tl.constexpr, SCALE_ROWS: tl.constexpr, TMA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The same product as `token_tiles`, BLOCK_N weight rows (over all parts) at a time.

    With PAIRS, as many (token, expert) pairs at most are rows in their own order, and `block_expert` is the expert of each.
    `w` is a descriptor (TMA) of, or a pointer to, [experts x parts, part_rows, inputs or words].
    """
    after_previous()
    ROWS: tl.constexpr = BLOCK_N // PARTS
    if PAIRS > 0:
        expert_P, rank_P, block_P, num_blocks = list_blocks(block_expert, num_rows, BLOCK_M, PAIRS)
    elif GROUPED:
        num_blocks = tl.load(num_blocks_ptr)
    else:
        num_blocks = tl.cdiv(num_rows, BLOCK_M)
    num_columns = tl.cdiv(part_rows, ROWS)
    in_block = tl.arange(0, BLOCK_M)
    lanes = tl.arange(0, BLOCK_K)
    for index in tl.range(tl.program_id(0), num_blocks * num_columns, tl.num_programs(0)):
        block, column = tile_at(index, num_blocks, num_columns, GROUP)
        if PAIRS > 0:
            matrix, rows, count = pairs_of(block, expert_P, rank_P, block_P, BLOCK_M, PAIRS)
            matrix *= PARTS
        else:
            expert, first_row, count = block_at(
                block, block_expert, block_start, block_rows, num_rows, GROUPED, BLOCK_M
            )
            matrix = expert * PARTS
            rows = first_row + in_block
        present = in_block < count
        tokens = rows
        if GATHER:
            tokens = (rows if PAIRS > 0 else tl.load(row_pair + rows, mask=present, other=0)) // TOP_K
        x_tile = x + tokens.to(tl.int64)[:, None] * x_stride + lanes[None, :]
        acc = tl.zeros((ROWS, BLOCK_M), tl.float32)
        if PARTS == 2:
            acc_up = tl.zeros((ROWS, BLOCK_M), tl.float32)
        for k in tl.range(0, tl.cdiv(inputs, BLOCK_K)):
            inside = present[:, None] & (k * BLOCK_K + lanes < inputs)[None, :]
            b = tl.load(x_tile + k * BLOCK_K, mask=inside, other=0.0).T
            a = _weights(w, scales, matrix, column * ROWS, k, inputs, part_rows, num_groups, KIND, GROUP_SIZE, SCALE_ROWS,
                         TMA, ROWS, BLOCK_K)  # fmt: skip
            acc = tl.dot(a, b, acc)
            if PARTS == 2:
                a = _weights(w, scales, matrix + 1, column * ROWS, k, inputs, part_rows, num_groups, KIND, GROUP_SIZE,
                             SCALE_ROWS, TMA, ROWS, BLOCK_K)  # fmt: skip
                acc_up = tl.dot(a, b, acc_up)
        features = column * ROWS + tl.arange(0, ROWS)
        if KIND != "bf16" and GROUP_SIZE == 0:
            acc *= _row_factor(scales, matrix, features, part_rows)
            if PARTS == 2:
                acc_up *= _row_factor(scales, matrix + 1, features, part_rows)
        if bias is not None:
            acc += bias_of(bias, matrix, features, part_rows)
            if PARTS == 2:
                acc_up += bias_of(bias, matrix + 1, features, part_rows)
        if PARTS == 2:
            acc = gated(acc, acc_up, ACTIVATION, alpha, limit)
        store_rows(acc, out, out_stride, rows, present, features, part_rows, GROUPED and PAIRS == 0)
