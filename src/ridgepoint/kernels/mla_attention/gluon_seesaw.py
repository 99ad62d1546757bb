# mypy: disallow-untyped-defs=False
"""Latent decoding of many heads by warps with roles: two groups multiply, a third fetches, and one group's softmax runs under the
other's products.

The function of `gluon_splits` over the same blocks, HEADS by KEYS a tile. Each of the two groups holds half of the channels of all
results in its registers. Logits of every other tile are its own: it weighs them, multiplies its half of that tile's latents by them,
and leaves weights and largest logits to the other group, which multiplies the other half. Tiles are added in order, so a group goes

    logits of its tile over its own half | the other's tile | logits, other half | softmax | its tile

and nothing of it waits for the matrix units but the softmax. Either half of a tile's room is free when the group of that half has
multiplied it, the group's own tile first; the third group fills rooms in that order, page by page, and announces PART channels at a time.

A use of a room is counted through all items; its parity is the phase to wait for. Weights and maxima have one room: who writes
them has read the last ones, and the exchange of sums that ends an item makes sure of it between items.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

HEADS: gl.constexpr = gl.constexpr(64)
KEYS: gl.constexpr = gl.constexpr(64)
HALF: gl.constexpr = gl.constexpr(256)  # channels that a group holds
PART: gl.constexpr = gl.constexpr(128)
WARPS = 4  # of each group
FETCHERS: gl.constexpr = gl.constexpr(32 * WARPS)
# Registers of a thread: with the first group's, which are what is left, 504 of 512. Nothing is spilled.
MULTIPLYING: gl.constexpr = gl.constexpr(224)
FETCHING: gl.constexpr = gl.constexpr(56)
# A warp copies 64 channels of four rows at a time; each thread 16 bytes.
COPIED: gl.constexpr = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0]))
LOGITS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 64, 16]))
VALUES: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, 256, 16]))
WEIGHTS: gl.constexpr = gl.constexpr(gl.DotOperandLayout(0, VALUES.value, 2))
LOGIT_ROWS: gl.constexpr = gl.constexpr(gl.SliceLayout(1, LOGITS.value))
VALUE_ROWS: gl.constexpr = gl.constexpr(gl.SliceLayout(1, VALUES.value))
SWIZZLED: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
FLAT: gl.constexpr = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
BARRIER: gl.constexpr = gl.constexpr(mbarrier.MBarrierLayout())


@gluon.jit(do_not_specialize=["window", "table_stride"])
def attend_splits(
    q_latent_ptr, q_rope_ptr, kv_ptr, out_ptr, acc_ptr, max_ptr, sum_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr,
    split_tokens_ptr, counts_ptr, latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride, qk_scale, window,
    H: gl.constexpr, PAGE: gl.constexpr, C: gl.constexpr, R: gl.constexpr,
):  # fmt: skip
    """`qk_scale` is positive, and every item has a key (see `triton_plan.list_work`): for what does not come one would wait for ever."""
    gdc_wait()  # as `triton_call.after_previous`
    gdc_launch_dependents()
    gl.static_assert(C == 2 * HALF)
    queries = gl.allocate_shared_memory(gl.bfloat16, [2, HEADS, HALF], SWIZZLED)
    q_rotary = gl.allocate_shared_memory(gl.bfloat16, [1, HEADS, R], SWIZZLED)
    latents = gl.allocate_shared_memory(gl.bfloat16, [4, KEYS, HALF], SWIZZLED)  # 2 * the tile's group + half
    rotary = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, R], SWIZZLED)
    weights = gl.allocate_shared_memory(gl.bfloat16, [1, HEADS, KEYS], SWIZZLED)
    maxima = gl.allocate_shared_memory(gl.float32, [HEADS], FLAT)
    sums = gl.allocate_shared_memory(gl.float32, [4, HEADS], FLAT)  # 2 * turn + group
    # Each by the tile's group: parts of the tile, in the order they are fetched; halves multiplied by the tile's group and by the other.
    came = _barriers(2, FETCHERS), _barriers(2, FETCHERS), _barriers(2, FETCHERS), _barriers(2, FETCHERS)
    freed = _barriers(2, 1), _barriers(2, 1)
    weighed = _barriers(1, 1), _barriers(1, 1)  # by each group: its weights and maxima can be read
    answered, summed = _barriers(1, 2), _barriers(1, 2)  # by both: the item needs its queries no more, has its sums
    tasks = (contexts_ptr, items_ptr, split_tokens_ptr, counts_ptr, starts_ptr, window)
    read = (queries, q_rotary, latents, rotary)
    written = (weights, maxima, sums)
    barriers = (came, freed, weighed, answered, summed)
    results = (out_ptr, acc_ptr, max_ptr, sum_ptr)
    sources = (q_latent_ptr, q_rope_ptr, kv_ptr, tables_ptr)
    strides = (latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride)
    gl.warp_specialize(
        [
            (_multiply, (read, written, barriers, tasks, results, qk_scale, H, C, 0)),
            (_multiply, (read, written, barriers, tasks, results, qk_scale, H, C, 1)),
            (_fetch, (read, came, freed, answered, tasks, sources, strides, H, PAGE, C, R)),
        ],
        [4, 4],
        [MULTIPLYING, FETCHING],
    )


@gluon.jit
def _barriers(num: gl.constexpr, count: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [num, 1], BARRIER)
    for i in gl.static_range(num):
        mbarrier.init(barriers.index(i), count=count)
    return barriers


@gluon.jit
def _multiply(read, written, barriers, tasks, results, qk_scale, H: gl.constexpr, C: gl.constexpr, GROUP: gl.constexpr):
    gdc_wait()  # in every warp, before it reads
    came, freed, weighed, answered, summed = barriers
    out_ptr, acc_ptr, max_ptr, sum_ptr = results
    latents, sums = read[2], written[2]
    TILES: gl.constexpr = H // HEADS
    uses, others_uses = 0, 0
    num_work = gl.load(tasks[3]) * TILES
    for work in range(gl.program_id(0), num_work, gl.num_programs(0)):
        item, first_head = work // TILES, work % TILES * HEADS
        turn = work // gl.num_programs(0) & 1  # of the program's items
        _, row, begin, end, is_whole = _item(tasks, item)
        num_tiles = (end - begin + KEYS - 1) // KEYS
        max_M = gl.full([HEADS], float("-inf"), gl.float32, LOGIT_ROWS)
        sum_M = gl.full([HEADS], 0.0, gl.float32, LOGIT_ROWS)
        # Waited for like a product, or the assembler takes it for one and waits for all before it is first scaled.
        acc_MC = warpgroup_mma_wait(0, deps=[gl.full([HEADS, HALF], 0.0, gl.float32, VALUES)])
        if GROUP == 0:  # nothing comes before the first tile
            logits_MN = gl.full([HEADS, KEYS], 0.0, gl.float32, LOGITS)
            for part in gl.static_range(4):
                logits_MN = _logits(read, came, logits_MN, uses, part, GROUP)
            acc_MC, max_M, sum_M = _own_tile(
                latents, written, weighed, freed, logits_MN, acc_MC, max_M, sum_M, uses, begin, end, qk_scale, GROUP
            )
        for t in range(2 - GROUP, num_tiles, 2):
            use = uses + t // 2
            logits_MN = gl.full([HEADS, KEYS], 0.0, gl.float32, LOGITS)
            logits_MN = _logits(read, came, logits_MN, use, 0, GROUP)
            logits_MN = _logits(read, came, logits_MN, use, 1, GROUP)
            acc_MC, max_M, sum_M = _others_tile(
                latents, written, weighed, acc_MC, max_M, sum_M, others_uses + (t - 1) // 2, GROUP
            )
            logits_MN = _logits(read, came, logits_MN, use, 2, GROUP)
            acc_MC = warpgroup_mma_wait(1, deps=[acc_MC])
            mbarrier.arrive(freed[1].index(1 - GROUP))
            logits_MN = _logits(read, came, logits_MN, use, 3, GROUP)
            acc_MC, max_M, sum_M = _own_tile(
                latents, written, weighed, freed, logits_MN, acc_MC, max_M, sum_M, use, begin + t * KEYS, end, qk_scale,
                GROUP,
            )  # fmt: skip
        mbarrier.arrive(answered.index(0))
        if (num_tiles - 1) % 2 != GROUP:
            acc_MC, max_M, sum_M = _others_tile(
                latents, written, weighed, acc_MC, max_M, sum_M, others_uses + (num_tiles - 1) // 2, GROUP
            )
            acc_MC = warpgroup_mma_wait(0, deps=[acc_MC])
            mbarrier.arrive(freed[1].index(1 - GROUP))
        place = 2 * turn
        sums.index(place + GROUP).store(sum_M)
        mbarrier.arrive(summed.index(0))
        mbarrier.wait(summed.index(0), turn)
        sum_M += sums.index(place + 1 - GROUP).load(LOGIT_ROWS)
        head_M = first_head + gl.arange(0, HEADS, layout=VALUE_ROWS)
        c_C = GROUP * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(0, VALUES))
        if is_whole:
            whole_MC = acc_MC * gl.convert_layout(1.0 / sum_M, VALUE_ROWS)[:, None]
            gl.store(out_ptr + ((row * H + head_M) * C)[:, None] + c_C[None, :], whole_MC.to(gl.bfloat16))
        else:
            at_M = (item * H + head_M).to(gl.int64) * C
            gl.store(acc_ptr + at_M[:, None] + c_C[None, :], acc_MC.to(gl.bfloat16))
            if GROUP == 0:
                row_M = item * H + first_head + gl.arange(0, HEADS, layout=LOGIT_ROWS)
                gl.store(max_ptr + row_M, max_M)
                gl.store(sum_ptr + row_M, sum_M)
        uses += (num_tiles + 1 - GROUP) // 2
        others_uses += (num_tiles + GROUP) // 2


@gluon.jit
def _item(tasks, item):
    """Its sequence, the sequence's row of queries, its keys, and whether those are all that the query sees."""
    contexts_ptr, items_ptr, split_tokens_ptr, _, starts_ptr, window = tasks
    b = gl.load(items_ptr + 2 * item).to(gl.int64)
    split = gl.load(items_ptr + 2 * item + 1)
    context = gl.load(contexts_ptr + b).to(gl.int32)
    length = gl.load(split_tokens_ptr + b)
    oldest = gl.where(window > 0, gl.maximum(context - window, 0), 0)
    begin = oldest + split * length
    return b, gl.load(starts_ptr + b), begin, gl.minimum(begin + length, context), context - oldest <= length


@gluon.jit
def _unknown_zero(use):
    """0, as far as there are fewer than 2^30 tiles. The compiler cannot know, so it finds a room's place where it is used: places
    that it may keep, it keeps, 88 of two registers, through the loop."""
    return use >> 30


@gluon.jit
def _logits(read, came, logits_MN, use, part: gl.constexpr, GROUP: gl.constexpr):
    """Of the group's tile over one part of the channels, under way. Its own half comes first, the rotary channels with the last part."""
    queries, q_rotary, latents, rotary = read
    half: gl.constexpr = GROUP if part < 2 else 1 - GROUP
    z = _unknown_zero(use)
    mbarrier.wait(came[part].index(GROUP), use & 1)
    fence_async_shared()
    q_MC = queries.index(z + half).slice(part % 2 * PART, PART, 1)
    k_NC = latents.index(z + 2 * GROUP + half).slice(part % 2 * PART, PART, 1)
    logits_MN = warpgroup_mma(q_MC, k_NC.permute((1, 0)), logits_MN, use_acc=part > 0, is_async=True)
    if part == 3:
        k_NR = rotary.index(z + GROUP)
        logits_MN = warpgroup_mma(q_rotary.index(z), k_NR.permute((1, 0)), logits_MN, is_async=True)
    return logits_MN


@gluon.jit
def _others_tile(latents, written, weighed, acc_MC, max_M, sum_M, use, GROUP: gl.constexpr):
    """Add the group's half of the other's latest tile, by the weights that it left: under way."""
    weights, maxima, _ = written
    z = _unknown_zero(use)
    mbarrier.wait(weighed[1 - GROUP].index(0), use & 1)
    new_max_M = maxima.load(LOGIT_ROWS)
    fade_M = gl.exp2(max_M - new_max_M)
    acc_MC = acc_MC * gl.convert_layout(fade_M, VALUE_ROWS)[:, None]
    acc_MC = warpgroup_mma(weights.index(z), latents.index(z + 2 - GROUP), acc_MC, is_async=True)
    return acc_MC, new_max_M, sum_M * fade_M


@gluon.jit
def _own_tile(
    latents, written, weighed, freed, logits_MN, acc_MC, max_M, sum_M, use, base, end, qk_scale, GROUP: gl.constexpr
):  # fmt: skip
    """Weigh the tile that starts at key `base`, leave the weights to the other group, and add the group's half of it."""
    weights, maxima, _ = written
    z = _unknown_zero(use)
    logits_MN = warpgroup_mma_wait(0, deps=[logits_MN])
    if base + KEYS > end:
        n_N = base + gl.arange(0, KEYS, layout=gl.SliceLayout(0, LOGITS))
        logits_MN = gl.where((n_N < end)[None, :], logits_MN, float("-inf"))
    new_max_M = gl.maximum(max_M, gl.max(logits_MN, 1) * qk_scale)
    weights_MN = gl.exp2(logits_MN * qk_scale - new_max_M[:, None])
    rounded_MN = weights_MN.to(gl.bfloat16)
    weights.index(z).store(rounded_MN)
    maxima.store(new_max_M)
    fence_async_shared()
    mbarrier.arrive(weighed[GROUP].index(0))
    fade_M = gl.exp2(max_M - new_max_M)
    acc_MC = acc_MC * gl.convert_layout(fade_M, VALUE_ROWS)[:, None]
    own_MN = gl.convert_layout(rounded_MN, WEIGHTS)  # in registers as they are
    acc_MC = warpgroup_mma(own_MN, latents.index(z + 3 * GROUP), acc_MC, is_async=True)
    sum_M = sum_M * fade_M + gl.sum(weights_MN, 1)
    acc_MC = warpgroup_mma_wait(0, deps=[acc_MC])
    mbarrier.arrive(freed[0].index(GROUP))
    return acc_MC, new_max_M, sum_M


@gluon.jit
def _fetch(
    read, came, freed, answered, tasks, sources, strides, H: gl.constexpr, PAGE: gl.constexpr, C: gl.constexpr, R: gl.constexpr
):  # fmt: skip
    """An item's queries, which have come when its first part has, then its tiles. Who may write a half may write the rotary room of
    the same tile: the other group has its weights, so nobody needs its logits."""
    gdc_wait()
    queries, q_rotary, latents, rotary = read
    q_latent_ptr, q_rope_ptr, kv_ptr, tables_ptr = sources
    latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride = strides
    TILES: gl.constexpr = H // HEADS
    c_C, r_R = gl.arange(0, PART, layout=gl.SliceLayout(0, COPIED)), gl.arange(0, R, layout=gl.SliceLayout(0, COPIED))
    uses_0, uses_1 = 0, 0
    num_work = gl.load(tasks[3]) * TILES
    for work in range(gl.program_id(0), num_work, gl.num_programs(0)):
        item, first_head = work // TILES, work % TILES * HEADS
        turn = work // gl.num_programs(0) & 1  # of the program's items
        b, row, begin, end, _ = _item(tasks, item)
        table_ptr = tables_ptr + b * table_stride
        cell_N = _cells(table_ptr, begin, end, PAGE)
        head_M = (first_head + gl.arange(0, HEADS, layout=gl.SliceLayout(1, COPIED))).to(gl.int64)
        latent_M = q_latent_ptr + row * latent_stride + head_M * latent_head_stride
        rope_M = q_rope_ptr + row * rope_stride + head_M * rope_head_stride
        mbarrier.wait(answered.index(0), turn ^ 1)
        for part in gl.static_range(4):
            room = queries.index(part // 2).slice(part % 2 * PART, PART, 1)
            async_copy.async_copy_global_to_shared(room, latent_M[:, None] + part * PART + c_C[None, :])
        async_copy.async_copy_global_to_shared(q_rotary.index(0), rope_M[:, None] + r_R[None, :])
        num_tiles = (end - begin + KEYS - 1) // KEYS
        for t in range(num_tiles):
            group = t % 2
            phase = ((gl.where(group == 0, uses_0, uses_1) + t // 2) & 1) ^ 1
            row_N = kv_ptr + cell_N.to(gl.int64) * (C + R)
            cell_N = _cells(table_ptr, begin + (t + 1) * KEYS, end, PAGE)  # looked up under the copies
            for part in gl.static_range(4):
                half = group if part < 2 else 1 - group
                if part % 2 == 0:
                    mbarrier.wait(freed[part // 2].index(group), phase)
                room = latents.index(2 * group + half).slice(part % 2 * PART, PART, 1)
                first = half * HALF + part % 2 * PART
                async_copy.async_copy_global_to_shared(room, row_N[:, None] + first + c_C[None, :])
                if part == 3:
                    async_copy.async_copy_global_to_shared(rotary.index(group), row_N[:, None] + C + r_R[None, :])
                async_copy.mbarrier_arrive(came[part].index(group), increment_count=False)
        uses_0 += (num_tiles + 1) // 2
        uses_1 += num_tiles // 2


@gluon.jit
def _cells(table_ptr, base, end, PAGE: gl.constexpr):
    """Where the keys `[base, base + KEYS)` lie; past the end, the last one again."""
    at_N = gl.minimum(base + gl.arange(0, KEYS, layout=gl.SliceLayout(1, COPIED)), end - 1)
    return gl.load(table_ptr + at_N // PAGE).to(gl.int32) * PAGE + at_N % PAGE
