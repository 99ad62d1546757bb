# mypy: disallow-untyped-defs=False
"""Products of fp8 codes with fp8 codes, on the matrix units as they are: weights of 128 x 128 blocks with activations of
`quantise`, both sides' scales applied to the float32 sum of each 128 inputs.

The matrix unit sums fewer bits than float32 has; 128 inputs are as many as it sums before they are added here. Weight rows
are the rows of the tile, so that a few tokens make a narrow tile and not a padded one; persistent as the other kernels are.

A row's result depends on its own inputs alone: rows never meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgepoint.kernels.gemm.tiles import bias_of, block_at, gated, store_rows, tile_at
from ridgepoint.kernels.triton_call import after_previous


@triton.jit(do_not_specialize=["num_rows"])
def fp8_tiles(
    x, x_scales, w, w_scales, bias, out, out_stride, row_pair, block_expert, block_start, block_rows, num_blocks_ptr, num_rows,
    inputs, part_rows, alpha, limit,
    TOP_K: tl.constexpr, GROUPED: tl.constexpr, GATHER: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The same product as `weight_tiles`. `w` is a descriptor of codes [matrices x parts, part_rows, padded inputs], `x` are
    codes [x rows, padded inputs] with `x_scales` [groups, x rows], where `x rows` is `num_rows`."""
    after_previous()
    ROWS: tl.constexpr = BLOCK_N // PARTS
    num_blocks = tl.load(num_blocks_ptr) if GROUPED else tl.cdiv(num_rows, BLOCK_M)
    num_columns = tl.cdiv(part_rows, ROWS)
    num_groups = tl.cdiv(inputs, BLOCK_K)
    scale_blocks = tl.cdiv(part_rows, 128)
    scale_step = tl.zeros((), tl.int64) + num_rows
    in_block, lanes = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    for index in tl.range(tl.program_id(0), num_blocks * num_columns, tl.num_programs(0)):
        block, column = tile_at(index, num_blocks, num_columns, GROUP)
        expert, first_row, count = block_at(block, block_expert, block_start, block_rows, num_rows, GROUPED, BLOCK_M)
        matrix = expert * PARTS
        present = in_block < count
        rows = first_row + in_block
        tokens = rows
        if GATHER:
            tokens = tl.load(row_pair + rows, mask=present, other=0) // TOP_K
        tokens = tl.where(present, tokens, 0).to(tl.int64)  # a row that is not there computes another's result
        x_tile = x + tokens[:, None] * (num_groups * BLOCK_K) + lanes[None, :]
        # gate and up have scales [part, group, block of rows]: the other part's come after all of one part's
        w_scale_at = w_scales + matrix.to(tl.int64) * num_groups * scale_blocks + column * ROWS // 128
        acc = tl.zeros((ROWS, BLOCK_M), tl.float32)
        if PARTS == 2:
            acc_up = tl.zeros((ROWS, BLOCK_M), tl.float32)
        for k in tl.range(0, num_groups):
            x_scale = tl.load(x_scales + k * scale_step + tokens)
            w_scale = tl.load(w_scale_at + k * scale_blocks)
            b = tl.load(x_tile + k * BLOCK_K).T
            a = w.load([matrix, column * ROWS, k * BLOCK_K]).reshape(ROWS, BLOCK_K)
            acc += tl.dot(a, b) * (x_scale * w_scale)[None, :]
            if PARTS == 2:
                w_scale = tl.load(w_scale_at + (num_groups + k) * scale_blocks)
                a = w.load([matrix + 1, column * ROWS, k * BLOCK_K]).reshape(ROWS, BLOCK_K)
                acc_up += tl.dot(a, b) * (x_scale * w_scale)[None, :]
        features = column * ROWS + tl.arange(0, ROWS)
        if bias is not None:
            acc += bias_of(bias, matrix, features, part_rows)
            if PARTS == 2:
                acc_up += bias_of(bias, matrix + 1, features, part_rows)
        if PARTS == 2:
            acc = gated(acc, acc_up, ACTIVATION, alpha, limit)
        store_rows(acc, out, out_stride, rows, present, features, part_rows, GROUPED)
