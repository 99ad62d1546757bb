# mypy: disallow-untyped-defs=False
"""Products of experts with up to three groups of rows each, by warps with a role each: weights leave memory once an expert.

The function of `token_tiles` over bf16 weights, for blocks of up to 192 rows: where experts have 64 to 192, all of one's rows lie
beside the same weights. One partition asks the copy engine for weights and gathers rows, three multiply 64 rows each; those past a
block's rows rest. The next tile is on its way while the last one's results are made and stored.

Every room of shared memory has a barrier that says it is full and one that says all groups have left it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ROWS: gl.constexpr = gl.constexpr(64)  # of a group
GROUPS: gl.constexpr = gl.constexpr(3)
FEATURES: gl.constexpr = gl.constexpr(128)  # weight rows of one sum; a tile has two sums, gate and up or neighbours
DEPTH: gl.constexpr = gl.constexpr(64)  # inputs of a stage: the 128 bytes that are swizzled together
STAGES: gl.constexpr = gl.constexpr(3)
WARPS = 4  # of a partition
REGISTERS = 128  # of a thread at the start, all that 512 threads can have; then as below
MULTIPLYING: gl.constexpr = gl.constexpr(160)
FETCHING: gl.constexpr = gl.constexpr(32)

TILES: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
BOXES: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 4))  # of weights
SUMS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
GATHERED: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
STORED: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def block_tiles(
    x, x_stride, w, bias, out, out_stride, row_pair, block_expert, block_start, block_rows, num_blocks_ptr, inputs, part_rows, alpha,
    limit, TOP_K: gl.constexpr, GATHER: gl.constexpr, PARTS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """`out[row] = act(w[expert] @ x[row] + bias[expert])` for the rows of every block, of which there are at most 192.

    `w` is a descriptor of [experts, parts, part_rows, inputs] in boxes of FEATURES x DEPTH, `x` one of rows that lie in order, or
    with GATHER a pointer to tokens (see `token_tiles`). `inputs` is a multiple of DEPTH."""
    gdc_wait()  # as `triton_call.after_previous`
    gdc_launch_dependents()
    rows = gl.allocate_shared_memory(gl.bfloat16, [STAGES * GROUPS, ROWS, DEPTH], TILES)
    weights = gl.allocate_shared_memory(gl.bfloat16, [STAGES * 2, 1, 1, FEATURES, DEPTH], BOXES)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    left = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(full.index(place), count=1 + (128 if GATHER else 0))
        mbarrier.init(left.index(place), count=GROUPS)
    num_columns = gl.cdiv(part_rows, FEATURES * 2 // PARTS)
    num_tiles = gl.load(num_blocks_ptr) * num_columns
    rooms = (rows, weights, full, left)
    blocks = (block_expert, block_start, block_rows, num_tiles, num_columns)
    numbers = (inputs, part_rows, alpha, limit)
    gl.warp_specialize(
        [
            (_multiply, (rooms, blocks, bias, out, out_stride, numbers, 0, GATHER, PARTS, ACTIVATION)),
            (_multiply, (rooms, blocks, bias, out, out_stride, numbers, 1, GATHER, PARTS, ACTIVATION)),
            (_multiply, (rooms, blocks, bias, out, out_stride, numbers, 2, GATHER, PARTS, ACTIVATION)),
            (_fetch, (rooms, blocks, x, x_stride, w, row_pair, inputs, TOP_K, GATHER, PARTS)),
        ],
        [4, 4, 4],
        [MULTIPLYING, MULTIPLYING, FETCHING],
    )


@gluon.jit
def _fetch(
    rooms, blocks, x, x_stride, w, row_pair, inputs, TOP_K: gl.constexpr, GATHER: gl.constexpr, PARTS: gl.constexpr
):
    gdc_wait()  # in every warp, before it reads
    rows, weights, full, left = rooms
    block_expert, block_start, block_rows, num_tiles, num_columns = blocks
    m_M = gl.arange(0, ROWS, layout=gl.SliceLayout(1, GATHERED))
    k_K = gl.arange(0, DEPTH, layout=gl.SliceLayout(0, GATHERED))
    step = 0
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, column = index // num_columns, index % num_columns
        expert, first, count = gl.load(block_expert + block), gl.load(block_start + block), gl.load(block_rows + block)
        if GATHER:
            # Of rows past the block's, any token's.
            at_M = _token_at(row_pair, first, count, m_M, TOP_K) * x_stride
            at_2_M = _token_at(row_pair, first + ROWS, count - ROWS, m_M, TOP_K) * x_stride
            at_3_M = _token_at(row_pair, first + 2 * ROWS, count - 2 * ROWS, m_M, TOP_K) * x_stride
        for k in range(0, inputs, DEPTH):
            room = step % STAGES
            mbarrier.wait(left.index(room), (step // STAGES & 1) ^ 1)
            ready = full.index(room)
            third = count > 2 * ROWS
            if GATHER:
                mbarrier.expect(ready, 2 * FEATURES * DEPTH * 2)
            else:
                mbarrier.expect(ready, (2 * FEATURES + 2 * ROWS) * DEPTH * 2, pred=count <= 2 * ROWS)
                mbarrier.expect(ready, (2 * FEATURES + 3 * ROWS) * DEPTH * 2, pred=third)
            for part in gl.static_range(2):
                box = weights.index(room * 2 + part)
                if PARTS == 2:
                    tma.async_copy_global_to_shared(w, [expert, part, column * FEATURES, k], ready, box)
                else:
                    tma.async_copy_global_to_shared(w, [expert, 0, (column * 2 + part) * FEATURES, k], ready, box)
            if GATHER:
                _gather(rows.index(room * GROUPS), x + k, at_M, k_K)
                if count > ROWS:
                    _gather(rows.index(room * GROUPS + 1), x + k, at_2_M, k_K)
                if third:
                    _gather(rows.index(room * GROUPS + 2), x + k, at_3_M, k_K)
                async_copy.mbarrier_arrive(ready, increment_count=False)
            else:
                tma.async_copy_global_to_shared(x, [first, k], ready, rows.index(room * GROUPS))
                tma.async_copy_global_to_shared(x, [first + ROWS, k], ready, rows.index(room * GROUPS + 1))
                tma.async_copy_global_to_shared(
                    x, [first + 2 * ROWS, k], ready, rows.index(room * GROUPS + 2), pred=third
                )
            step += 1


@gluon.jit
def _token_at(row_pair, first, count, m_M, TOP_K: gl.constexpr):
    return gl.load(row_pair + first + m_M, mask=m_M < count, other=0) // TOP_K


@gluon.jit
def _gather(room, x, at_M, k_K):
    async_copy.async_copy_global_to_shared(room, x + (at_M[:, None] + k_K[None, :]))


@gluon.jit
def _multiply(
    rooms, blocks, bias, out, out_stride, numbers,
    GROUP: gl.constexpr, GATHER: gl.constexpr, PARTS: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    inputs, part_rows, alpha, limit = numbers
    gdc_wait()
    rows, weights, full, left = rooms
    block_expert, block_start, block_rows, num_tiles, num_columns = blocks
    weight_NK = weights._reinterpret(gl.bfloat16, [STAGES * 2, FEATURES, DEPTH], TILES)
    step = 0
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        block, column = index // num_columns, index % num_columns
        count = gl.load(block_rows + block) - GROUP * ROWS
        expert, first = gl.load(block_expert + block), gl.load(block_start + block) + GROUP * ROWS
        if count > 0:
            one_MN = gl.full([ROWS, FEATURES], 0.0, gl.float32, SUMS)
            two_MN = gl.full([ROWS, FEATURES], 0.0, gl.float32, SUMS)
            for _ in range(0, inputs, DEPTH):
                room = step % STAGES
                mbarrier.wait(full.index(room), step // STAGES & 1)
                if GATHER:
                    fence_async_shared()  # rows came by threads
                mine_MK = rows.index(room * GROUPS + GROUP)
                one_MN = warpgroup_mma(mine_MK, weight_NK.index(room * 2).permute((1, 0)), one_MN, is_async=True)
                two_MN = warpgroup_mma(mine_MK, weight_NK.index(room * 2 + 1).permute((1, 0)), two_MN, is_async=True)
                one_MN, two_MN = warpgroup_mma_wait(0, deps=[one_MN, two_MN])
                gl.thread_barrier()  # no warp of the group reads the room any more
                mbarrier.arrive(left.index(room))
                step += 1
            n_N = gl.arange(0, FEATURES, layout=gl.SliceLayout(0, SUMS))
            if PARTS == 2:
                feature_N = column * FEATURES + n_N
                one_MN = _with_bias(one_MN, bias, expert * 2 * part_rows, feature_N, part_rows)
                two_MN = _with_bias(two_MN, bias, (expert * 2 + 1) * part_rows, feature_N, part_rows)
                result_MN = _gated(one_MN, two_MN, ACTIVATION, alpha, limit)
                _store(result_MN, out, out_stride, first, count, column * FEATURES, part_rows)
            else:
                feature_N = column * 2 * FEATURES + n_N
                one_MN = _with_bias(one_MN, bias, expert * part_rows, feature_N, part_rows)
                two_MN = _with_bias(two_MN, bias, expert * part_rows, feature_N + FEATURES, part_rows)
                _store(one_MN, out, out_stride, first, count, column * 2 * FEATURES, part_rows)
                _store(two_MN, out, out_stride, first, count, (column * 2 + 1) * FEATURES, part_rows)
        else:
            for _ in range(0, inputs, DEPTH):
                room = step % STAGES
                mbarrier.wait(full.index(room), step // STAGES & 1)
                mbarrier.arrive(left.index(room))
                step += 1


@gluon.jit
def _with_bias(sum_MN, bias, first, feature_N, part_rows):
    if bias is not None:
        sum_MN += gl.load(bias + first + feature_N, mask=feature_N < part_rows, other=0.0).to(gl.float32)[None, :]
    return sum_MN


@gluon.jit
def _gated(gate, up, ACTIVATION: gl.constexpr, alpha, limit):
    """As `tiles.gated`."""
    if ACTIVATION == "clamped":
        gate = gl.where(gate > limit, limit, gate)
        up = gl.where(up > limit, limit, gl.where(up < -limit, -limit, up))
        return gate * _sigmoid(alpha * gate) * (up + 1.0)
    else:
        return gate * _sigmoid(gate) * up


@gluon.jit
def _sigmoid(x):
    power = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -1.4426950408889634], gl.float32, True, 1
    )
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], gl.float32, True, 1)


@gluon.jit
def _store(result_MN, out, out_stride, first, count, feature, part_rows):
    result_MN = gl.convert_layout(result_MN.to(gl.bfloat16), STORED)
    m_M = gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORED))
    n_N = feature + gl.arange(0, FEATURES, layout=gl.SliceLayout(0, STORED))
    at_M = (first + m_M).to(gl.int64) * out_stride
    gl.store(out + at_M[:, None] + n_N[None, :], result_MN, mask=(m_M < count)[:, None] & (n_N < part_rows)[None, :])
