# mypy: disallow-untyped-defs=False
"""Latent decoding of many heads, in an order that Triton's own pipeline cannot be told: the next tile's latents are asked for before
this one's logits are there, so that they travel under a whole tile's work and not under half of it.

The function of `triton_kernels.attend_splits` over bf16 blocks, with HEADS by KEYS a tile: two tiles of latents, the queries and the
weights fill a multiprocessor's shared memory. Two warp groups share the keys of the logits and the channels of the values. What the
matrix units read of shared memory was waited for, fenced and passed a barrier; what is written there was waited for by its readers.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

HEADS: gl.constexpr = gl.constexpr(64)
KEYS: gl.constexpr = gl.constexpr(64)
WARPS = 8
# A warp copies a row of 256 channels at a time, or four rows of 64; each thread 16 bytes.
WIDE: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0]))
NARROW: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0]))
LOGITS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 32, 16]))
VALUES: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 256, 16]))
SWIZZLED: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit(do_not_specialize=["window", "table_stride"])
def attend_splits(
    q_latent_ptr, q_rope_ptr, kv_ptr, out_ptr, acc_ptr, max_ptr, sum_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr,
    split_tokens_ptr, counts_ptr, latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride, qk_scale, window,
    H: gl.constexpr, PAGE: gl.constexpr, C: gl.constexpr, R: gl.constexpr,
):  # fmt: skip
    gdc_wait()  # as `triton_call.after_previous`
    gdc_launch_dependents()
    TILES: gl.constexpr = H // HEADS
    q_latents = gl.allocate_shared_memory(gl.bfloat16, [HEADS, C], SWIZZLED)
    q_rotary = gl.allocate_shared_memory(gl.bfloat16, [HEADS, R], SWIZZLED)
    latents = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, C], SWIZZLED)
    rotary = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, R], SWIZZLED)
    weights = gl.allocate_shared_memory(gl.bfloat16, [HEADS, KEYS], SWIZZLED)
    num_work = gl.load(counts_ptr) * TILES
    for work in range(gl.program_id(0), num_work, gl.num_programs(0)):
        item, first_head = work // TILES, work % TILES * HEADS
        b = gl.load(items_ptr + 2 * item).to(gl.int64)
        split = gl.load(items_ptr + 2 * item + 1)
        context = gl.load(contexts_ptr + b).to(gl.int32)
        row = gl.load(starts_ptr + b)
        oldest = gl.where(window > 0, gl.maximum(context - window, 0), 0)
        length = gl.load(split_tokens_ptr + b)
        begin = oldest + split * length
        end = gl.minimum(begin + length, context)
        table_ptr = tables_ptr + b * table_stride
        gl.thread_barrier()  # no warp multiplies with the last item's queries any more
        _load_queries(q_latents, q_latent_ptr + row * latent_stride, latent_head_stride, first_head, C, WIDE)
        _load_queries(q_rotary, q_rope_ptr + row * rope_stride, rope_head_stride, first_head, R, NARROW)
        _ask(latents.index(0), rotary.index(0), kv_ptr, *_cells(table_ptr, begin, end, PAGE), C, R)
        wide_N, narrow_N = _cells(table_ptr, begin + KEYS, end, PAGE)
        max_M = gl.full([HEADS], float("-inf"), gl.float32, gl.SliceLayout(1, LOGITS))
        sum_M = gl.full([HEADS], 0.0, gl.float32, gl.SliceLayout(1, LOGITS))
        acc_MC = warpgroup_mma_init(gl.full([HEADS, C], 0.0, gl.float32, VALUES))
        place = 0
        for base in range(begin, end, KEYS):
            # Left in flight beside the logits, these products would make the assembler run all of them one by one.
            acc_MC = warpgroup_mma_wait(0, deps=[acc_MC])
            async_copy.wait_group(0)
            fence_async_shared()
            gl.thread_barrier()  # this tile is there, and the last one's room is free
            latent_NC, key_NR = latents.index(place), rotary.index(place)
            place = 1 - place
            _ask(latents.index(place), rotary.index(place), kv_ptr, wide_N, narrow_N, C, R)
            logits_MN = gl.full([HEADS, KEYS], 0.0, gl.float32, LOGITS)
            logits_MN = warpgroup_mma(q_rotary, key_NR.permute((1, 0)), logits_MN, use_acc=False, is_async=True)
            logits_MN = warpgroup_mma(q_latents, latent_NC.permute((1, 0)), logits_MN, is_async=True)
            logits_MN = warpgroup_mma_wait(0, deps=[logits_MN]) * qk_scale
            n_N = base + gl.arange(0, KEYS, layout=gl.SliceLayout(0, LOGITS))
            logits_MN = gl.where((n_N < end)[None, :], logits_MN, float("-inf"))
            new_max_M = gl.maximum(max_M, gl.max(logits_MN, 1))
            weights_MN = gl.exp2(logits_MN - new_max_M[:, None])
            fade_M = gl.exp2(max_M - new_max_M)
            sum_M = sum_M * fade_M + gl.sum(weights_MN, 1)
            max_M = new_max_M
            weights.store(weights_MN.to(gl.bfloat16))
            fence_async_shared()
            gl.thread_barrier()
            acc_MC *= gl.convert_layout(fade_M, gl.SliceLayout(1, VALUES))[:, None]
            acc_MC = warpgroup_mma(weights, latent_NC, acc_MC, is_async=True)
            wide_N, narrow_N = _cells(table_ptr, base + 2 * KEYS, end, PAGE)
        acc_MC = warpgroup_mma_wait(0, deps=[acc_MC])
        async_copy.wait_group(0)  # of a tile past the end
        head_M = first_head + gl.arange(0, HEADS, layout=gl.SliceLayout(1, VALUES))
        c_C = gl.arange(0, C, layout=gl.SliceLayout(0, VALUES))
        if context - oldest <= length:
            whole_MC = acc_MC * gl.convert_layout(1.0 / sum_M, gl.SliceLayout(1, VALUES))[:, None]
            gl.store(out_ptr + ((row * H + head_M) * C)[:, None] + c_C[None, :], whole_MC.to(gl.bfloat16))
        else:
            at_M = (item * H + head_M).to(gl.int64) * C
            gl.store(acc_ptr + at_M[:, None] + c_C[None, :], acc_MC.to(gl.bfloat16))
            row_M = item * H + first_head + gl.arange(0, HEADS, layout=gl.SliceLayout(1, LOGITS))
            gl.store(max_ptr + row_M, max_M)
            gl.store(sum_ptr + row_M, sum_M)


@gluon.jit
def _load_queries(room, ptr, head_stride, first_head, WIDTH: gl.constexpr, LAYOUT: gl.constexpr):
    head_M = first_head + gl.arange(0, HEADS, layout=gl.SliceLayout(1, LAYOUT))
    channel = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    room.store(gl.load(ptr + (head_M.to(gl.int64) * head_stride)[:, None] + channel[None, :]))


@gluon.jit
def _cells(table_ptr, base, end, PAGE: gl.constexpr):
    """Where the keys `[base, base + KEYS)` lie, as either layout has them; past the end, the last one again."""
    return _cells_as(table_ptr, base, end, PAGE, WIDE), _cells_as(table_ptr, base, end, PAGE, NARROW)


@gluon.jit
def _cells_as(table_ptr, base, end, PAGE: gl.constexpr, LAYOUT: gl.constexpr):
    at_N = gl.minimum(base + gl.arange(0, KEYS, layout=gl.SliceLayout(1, LAYOUT)), end - 1)
    return gl.load(table_ptr + at_N // PAGE).to(gl.int32) * PAGE + at_N % PAGE


@gluon.jit
def _ask(latents, rotary, kv_ptr, wide_N, narrow_N, C: gl.constexpr, R: gl.constexpr):
    """Start copying the keys of these cells."""
    c_C, r_R = gl.arange(0, C, layout=gl.SliceLayout(0, WIDE)), gl.arange(0, R, layout=gl.SliceLayout(0, NARROW))
    row_N = wide_N.to(gl.int64) * (C + R)
    async_copy.async_copy_global_to_shared(latents, kv_ptr + row_N[:, None] + c_C[None, :])
    row_N = narrow_N.to(gl.int64) * (C + R) + C
    async_copy.async_copy_global_to_shared(rotary, kv_ptr + row_N[:, None] + r_R[None, :])
    async_copy.commit_group()
