# mypy: disallow-untyped-defs=False
"""Products with tokens as the rows of the tile: bf16 weights and many rows, where the tensor cores are the roof.

A tile is BLOCK_M rows of one expert times BLOCK_N weight rows (half gate, half up for a gated projection, in one matrix
instruction whose accumulator holds both sides of a feature in one thread, so the activation costs no exchange). Programs are
persistent: each walks over tiles, and the loads of its next tile run under the activation of the last.

A row's result depends on its own inputs and on the tile's shape along K alone: rows never meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgepoint.kernels.gemm.tiles import gated, tile_at
from ridgepoint.kernels.triton_call import after_previous


@triton.jit(do_not_specialize=["num_rows"])
def token_tiles(
    x, x_stride, w, bias, out, row_pair, block_expert, block_start, block_rows, num_blocks_ptr, num_rows,
    inputs, part_rows, alpha, limit,
    TOP_K: tl.constexpr, GROUPED: tl.constexpr, GATHER: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """`out[row] = act(w[expert] @ x[row] + bias[expert])` for the rows of every block.

    `w` is a descriptor of [experts, parts, part_rows, inputs], `out` one of [rows, part_rows]. `x` is a descriptor of rows
    that lie in order, or with GATHER a pointer to tokens: row r holds the pair `row_pair[r]`, that is token pair // TOP_K.
    Without GROUPED there is one matrix and the blocks are consecutive.
    """
    after_previous()
    FEATURES: tl.constexpr = BLOCK_N // PARTS
    num_blocks = tl.load(num_blocks_ptr) if GROUPED else tl.cdiv(num_rows, BLOCK_M)
    num_columns = tl.cdiv(part_rows, FEATURES)
    for index in tl.range(tl.program_id(0), num_blocks * num_columns, tl.num_programs(0), flatten=FLATTEN):
        block, column = tile_at(index, num_blocks, num_columns, GROUP)
        expert = tl.load(block_expert + block) if GROUPED else 0
        first_row = tl.load(block_start + block) if GROUPED else block * BLOCK_M
        if GATHER:
            in_block = tl.arange(0, BLOCK_M)
            present = in_block < tl.load(block_rows + block)
            pairs = tl.load(row_pair + first_row + in_block, mask=present, other=0)
            lanes = tl.arange(0, BLOCK_K)
            x_tile = x + (pairs // TOP_K).to(tl.int64)[:, None] * x_stride + lanes[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(0, tl.cdiv(inputs, BLOCK_K)):
            start = k * BLOCK_K
            if GATHER:
                a = tl.load(x_tile + start, mask=present[:, None] & (start + lanes < inputs)[None, :], other=0.0)
            else:
                a = x.load([first_row, start])
            b = w.load([expert, 0, column * FEATURES, start]).reshape(BLOCK_N, BLOCK_K)
            acc = tl.dot(a, b.T, acc)
        features = column * FEATURES + tl.arange(0, FEATURES)
        if PARTS == 2:
            gate, up = tl.split(acc.reshape(BLOCK_M, 2, FEATURES).permute(0, 2, 1))
            if bias is not None:
                at = bias + expert * 2 * part_rows + features
                gate += tl.load(at, mask=features < part_rows, other=0.0).to(tl.float32)[None, :]
                up += tl.load(at + part_rows, mask=features < part_rows, other=0.0).to(tl.float32)[None, :]
            y = gated(gate, up, ACTIVATION, alpha, limit)
        else:
            y = acc
            if bias is not None:
                at = bias + expert * part_rows + features
                y += tl.load(at, mask=features < part_rows, other=0.0).to(tl.float32)[None, :]
        out.store([first_row, column * FEATURES], y.to(out.dtype))
