# mypy: disallow-untyped-defs=False
"""Attention of prompts by warps with a role each: one fetches pages of keys and values for two groups that attend.

The function of `triton_kernels.attend_tiles` over bf16 blocks. A group has 64 rows, as the matrix instruction takes them, and gives
it two products at a time: the logits of the next tile of keys and the values under this one's weights. They take turns, so that one
group's weights are made under the other's products; across items too, since the next item's first tile is the next tile.

Every room of shared memory has a barrier that says it is full and one that says both groups have left it. The copy engine writes
rooms, the matrix units read them. A page's cells at and past the end of an item's keys are not fetched: its box starts as many rows
before the page, which come as zeros, and its keys lie as many places later. No number that nobody has written takes part.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

ROWS: gl.constexpr = gl.constexpr(64)  # (query, head) pairs of a group
GROUPS: gl.constexpr = gl.constexpr(2)
KEYS: gl.constexpr = gl.constexpr(128)
WIDTH: gl.constexpr = gl.constexpr(64)  # channels of a box: the 128 bytes that are swizzled together
WARPS = 4  # of a group; the fetching partition has one
REGISTERS = 168  # of a thread at the start, all that 384 threads can have; then as below
ATTENDING: gl.constexpr = gl.constexpr(232)
FETCHING: gl.constexpr = gl.constexpr(40)

BOXES: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 3))
TILES: gl.constexpr = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
LOGITS: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))

# Barriers, two of each: of the rooms for queries, keys and values, and whose turn it is.
Q_FULL: gl.constexpr = gl.constexpr(0)
K_FULL: gl.constexpr = gl.constexpr(2)
V_FULL: gl.constexpr = gl.constexpr(4)
TURN: gl.constexpr = gl.constexpr(6)
Q_LEFT: gl.constexpr = gl.constexpr(8)
K_LEFT: gl.constexpr = gl.constexpr(10)
V_LEFT: gl.constexpr = gl.constexpr(12)
BARRIERS: gl.constexpr = gl.constexpr(14)


@gluon.jit(do_not_specialize=["window", "table_stride"])
def attend_tiles(
    q, kv, sinks_ptr, out_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr, counts_ptr, table_stride, qk_scale, window,
    H: gl.constexpr, G: gl.constexpr, P: gl.constexpr, PAGE: gl.constexpr, HEADS: gl.constexpr, HAS_SINKS: gl.constexpr,
):  # fmt: skip
    """`q` is a descriptor of [tokens, H, P] in boxes of one group's queries with HEADS heads each (those of a key-value head, to the
    next power of two), `kv` one of [blocks x 2 x G, PAGE, P] in boxes of a page. Each a WIDTH wide."""
    gdc_wait()  # as `triton_call.after_previous`
    gdc_launch_dependents()
    HALVES: gl.constexpr = P // WIDTH
    queries = gl.allocate_shared_memory(gl.bfloat16, [2 * GROUPS * HALVES, ROWS // HEADS, HEADS, WIDTH], BOXES)
    keys = gl.allocate_shared_memory(gl.bfloat16, [2 * HALVES * (KEYS // PAGE), 1, PAGE, WIDTH], BOXES)
    values = gl.allocate_shared_memory(gl.bfloat16, [2 * HALVES * (KEYS // PAGE), 1, PAGE, WIDTH], BOXES)
    barriers = gl.allocate_shared_memory(gl.int64, [BARRIERS, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(BARRIERS):
        mbarrier.init(barriers.index(place), count=1 if place < Q_LEFT else GROUPS)
    num_work = gl.load(counts_ptr + 1) * G
    lists = (items_ptr, starts_ptr, contexts_ptr, num_work, window)
    rooms = (queries, keys, values, barriers)
    gl.warp_specialize(
        [
            (_attend, (rooms, lists, sinks_ptr, out_ptr, qk_scale, 0, H, G, P, PAGE, HEADS, HAS_SINKS)),
            (_attend, (rooms, lists, sinks_ptr, out_ptr, qk_scale, 1, H, G, P, PAGE, HEADS, HAS_SINKS)),
            (_fetch, (rooms, lists, q, kv, tables_ptr, table_stride, H, G, P, PAGE, HEADS)),
        ],
        [4, 1],
        [ATTENDING, FETCHING],
    )


@gluon.jit
def _num_turns(num_work):
    """Items of this program: of every round of programs one, in odd rounds from the other end, since items come longest first."""
    whole, rest = num_work // gl.num_programs(0), num_work % gl.num_programs(0)
    return whole + gl.where(_in_round(whole) < rest, 1, 0)


@gluon.jit
def _in_round(turn):
    return gl.where(turn % 2 == 0, gl.program_id(0), gl.num_programs(0) - 1 - gl.program_id(0))


@gluon.jit
def _item(lists, turn, G: gl.constexpr, QUERIES: gl.constexpr, PAGE: gl.constexpr):
    """(sequence, key-value head, first row, queries from there on, position of the first, of the last, first key) of a turn; of a
    turn past the last, those of some sequence."""
    items_ptr, starts_ptr, contexts_ptr, num_work, window = lists
    work = turn * gl.num_programs(0) + _in_round(turn)
    item, g, there = work // G, work % G, work < num_work
    b = gl.load(items_ptr + 2 * item, mask=there, other=0)
    first = gl.load(items_ptr + 2 * item + 1, mask=there, other=0) * QUERIES
    start = gl.load(starts_ptr + b).to(gl.int32)
    queries = gl.load(starts_ptr + b + 1).to(gl.int32) - start
    context = gl.load(contexts_ptr + b).to(gl.int32)
    position = context - queries + first
    last = gl.minimum(position + QUERIES, context) - 1
    begin = gl.where(window > 0, gl.maximum(position - window + 1, 0), 0) // PAGE * PAGE
    return b, g, start + first, queries - first, position, last, begin


@gluon.jit
def _fetch(
    rooms, lists, q, kv, tables_ptr, table_stride,
    H: gl.constexpr, G: gl.constexpr, P: gl.constexpr, PAGE: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    gdc_wait()  # in every warp, before it reads
    queries, keys, values, barriers = rooms
    HALVES: gl.constexpr = P // WIDTH
    PAGES: gl.constexpr = KEYS // PAGE
    tile = 0
    for turn in range(_num_turns(lists[3])):
        b, g, row, _, _, last, begin = _item(lists, turn, G, GROUPS * (ROWS // HEADS), PAGE)
        slot = turn % 2
        mbarrier.wait(barriers.index(Q_LEFT + slot), (turn // 2 & 1) ^ 1)
        mbarrier.expect(barriers.index(Q_FULL + slot), GROUPS * ROWS * P * 2)
        for group in gl.static_range(GROUPS):
            for half in gl.static_range(HALVES):
                tma.async_copy_global_to_shared(
                    q, [row + group * (ROWS // HEADS), g * (H // G), half * WIDTH], barriers.index(Q_FULL + slot),
                    queries.index((slot * GROUPS + group) * HALVES + half),
                )  # fmt: skip
        table_ptr = tables_ptr + b.to(gl.int64) * table_stride
        for base in range(begin, last + 1, KEYS):
            pages = ()  # (keys of a page, how many rows before it its box starts), known by the time there is room
            for i in gl.static_range(PAGES):
                at = base + i * PAGE
                block = gl.load(table_ptr + at // PAGE, mask=at <= last, other=0).to(gl.int32)
                before = gl.minimum(gl.maximum(at + PAGE - 1 - last, 0), PAGE)
                pages += ((block * 2 * G + g, before),)  # type: ignore[assignment]
            room, parity = tile % 2, (tile // 2 & 1) ^ 1
            mbarrier.wait(barriers.index(K_LEFT + room), parity)
            _bring(kv, pages, 0, keys, room, barriers.index(K_FULL + room), HALVES)
            mbarrier.wait(barriers.index(V_LEFT + room), parity)
            _bring(kv, pages, G, values, room, barriers.index(V_FULL + room), HALVES)
            tile += 1


@gluon.jit
def _bring(kv, pages, plane: gl.constexpr, boxes, room, full, HALVES: gl.constexpr):
    """Ask for a tile of keys, or of values, which lie `plane` pages further."""
    PAGES: gl.constexpr = len(pages)
    mbarrier.expect(full, KEYS * HALVES * WIDTH * 2)
    for half in gl.static_range(HALVES):
        for i in gl.static_range(PAGES):
            page, before = pages[i]
            box = boxes.index((room * HALVES + half) * PAGES + i)
            tma.async_copy_global_to_shared(kv, [page + plane, -before, half * WIDTH], full, box)


@gluon.jit
def _attend(
    rooms, lists, sinks_ptr, out_ptr, qk_scale, GROUP: gl.constexpr,
    H: gl.constexpr, G: gl.constexpr, P: gl.constexpr, PAGE: gl.constexpr, HEADS: gl.constexpr, HAS_SINKS: gl.constexpr,
):  # fmt: skip
    gdc_wait()
    queries, keys, values, barriers = rooms
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, P, 16])
    QUERIES: gl.constexpr = ROWS // HEADS
    query_MP = queries._reinterpret(gl.bfloat16, [2 * GROUPS, ROWS, P], TILES)
    key_NP = keys._reinterpret(gl.bfloat16, [2, KEYS, P], TILES)
    value_NP = values._reinterpret(gl.bfloat16, [2, KEYS, P], TILES)
    window = lists[4]
    m_M = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LOGITS))
    turns = _num_turns(lists[3])
    _, g, row, left, position, last, begin = _item(lists, 0, G, GROUPS * QUERIES, PAGE)
    mbarrier.wait(barriers.index(Q_FULL), 0, pred=turns > 0)
    mbarrier.wait(barriers.index(K_FULL), 0, pred=turns > 0)
    logits_MN = gl.full([ROWS, KEYS], 0.0, gl.float32, LOGITS)
    logits_MN = warpgroup_mma(
        query_MP.index(GROUP), key_NP.index(0).permute((1, 0)), logits_MN, use_acc=False, is_async=True
    )
    logits_MN = warpgroup_mma_wait(0, deps=[logits_MN])
    gl.thread_barrier()  # no warp of the group reads the room any more
    mbarrier.arrive(barriers.index(K_LEFT), pred=turns > 0)
    tile = 0
    for turn in range(turns):
        coming = _item(lists, turn + 1, G, GROUPS * QUERIES, PAGE)
        sink_M = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, LOGITS))
        if HAS_SINKS:
            head_M = gl.minimum(m_M % HEADS, H // G - 1)
            sink_M = gl.load(sinks_ptr + g * (H // G) + head_M).to(gl.float32) * 1.4426950408889634
        first = gl.minimum(position + GROUP * QUERIES, last)  # of this group's positions
        position_M = gl.minimum(position + GROUP * QUERIES + m_M // HEADS, last)
        max_M = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, LOGITS))
        sum_M = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, LOGITS))
        acc_MP = gl.full([ROWS, P], 0.0, gl.float32, VALUES)
        for base in range(begin, last + 1, KEYS):
            if (base + KEYS > first + 1) | ((window > 0) & (base <= last - window)):
                logits_MN = _seen(logits_MN, base, last, position_M, window, PAGE)
            weights_MN, fade_M, max_M, sum_M = _weigh(logits_MN, max_M, sum_M, qk_scale)
            acc_MP *= gl.convert_layout(fade_M, gl.SliceLayout(1, VALUES))[:, None]
            weights_MN = gl.convert_layout(weights_MN.to(gl.bfloat16), gl.DotOperandLayout(0, VALUES, 2))
            ends = base + KEYS > last
            more = (turn + 1 < turns) | (base + KEYS <= last)
            # The next tile's logits; past the last one those of this tile again, which nobody looks at.
            room, following = tile % 2, (tile + gl.where(more, 1, 0)) % 2
            ahead = turn + gl.where(ends & more, 1, 0)  # the turn that the next tile belongs to
            mbarrier.wait(barriers.index(Q_FULL + ahead % 2), ahead // 2 & 1, pred=ends & more)
            mbarrier.wait(barriers.index(K_FULL + following), (tile + 1) // 2 & 1, pred=more)
            mbarrier.wait(barriers.index(V_FULL + room), tile // 2 & 1)
            mbarrier.wait(barriers.index(TURN + GROUP), (tile & 1) ^ (1 - GROUP))
            logits_MN = warpgroup_mma(
                query_MP.index(ahead % 2 * GROUPS + GROUP), key_NP.index(following).permute((1, 0)), logits_MN,
                use_acc=False, is_async=True,
            )  # fmt: skip
            acc_MP = warpgroup_mma(weights_MN, value_NP.index(room), acc_MP, is_async=True)
            mbarrier.arrive(barriers.index(TURN + 1 - GROUP))
            logits_MN, acc_MP, weights_MN = warpgroup_mma_wait(0, deps=[logits_MN, acc_MP, weights_MN])
            gl.thread_barrier()  # no warp of the group reads these rooms any more
            mbarrier.arrive(barriers.index(K_LEFT + following), pred=more)
            mbarrier.arrive(barriers.index(V_LEFT + room))
            tile += 1
        mbarrier.arrive(barriers.index(Q_LEFT + turn % 2))
        _finish(acc_MP, max_M * qk_scale, sum_M, sink_M, out_ptr, row, left, g, GROUP, H, G, P, HEADS)
        _, g, row, left, position, last, begin = coming


@gluon.jit
def _seen(logits_MN, base, last, position_M, window, PAGE: gl.constexpr):
    """The logits of what each row sees; cells of the last page lie as many places later as it has cells past the end."""
    place_N = base + gl.arange(0, KEYS, layout=gl.SliceLayout(0, LOGITS))
    partly = last // PAGE * PAGE
    n_N = place_N - gl.where(place_N >= partly, partly + PAGE - 1 - last, 0)
    here_N = (place_N < partly) | (n_N >= partly)
    seen_MN = here_N[None, :] & (n_N[None, :] <= position_M[:, None])
    seen_MN = seen_MN & ((window <= 0) | (n_N[None, :] > position_M[:, None] - window))
    return gl.where(seen_MN, logits_MN, float("-inf"))


@gluon.jit
def _weigh(logits_MN, max_M, sum_M, qk_scale):
    """Weights under the new maximum, what that leaves of the old sums, the maximum and the sum. The scale is positive."""
    max_before_M = max_M
    max_M = gl.maximum(max_M, gl.max(logits_MN, 1))
    shift_M = gl.where(max_M == float("-inf"), 0.0, max_M * qk_scale)  # a row that has seen nothing yet has no maximum
    weights_MN = _power_of_two(logits_MN * qk_scale - shift_M[:, None])
    fade_M = _power_of_two(max_before_M * qk_scale - shift_M)
    return weights_MN, fade_M, max_M, sum_M * fade_M + gl.sum(weights_MN, 1)


@gluon.jit
def _power_of_two(x):
    """Without the care for results too small to be normal, which weigh nothing."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)


@gluon.jit
def _finish(
    acc_MP, max_M, sum_M, sink_M, out_ptr, row, left, g,
    GROUP: gl.constexpr, H: gl.constexpr, G: gl.constexpr, P: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    """Store the rows there are. A sink is one more logit, whose value is zero."""
    whole_M = gl.maximum(max_M, sink_M)
    share_M = _power_of_two(max_M - whole_M)
    share_M = share_M / (sum_M * share_M + _power_of_two(sink_M - whole_M))
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // P, P // 8], [4, 1], [1, 0])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, P, 16])
    out_MP = acc_MP * gl.convert_layout(share_M, gl.SliceLayout(1, VALUES))[:, None]
    out_MP = gl.convert_layout(out_MP.to(gl.bfloat16), STORED)
    m_M = gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORED))
    p_P = gl.arange(0, P, layout=gl.SliceLayout(0, STORED))
    query_M, head_M = GROUP * (ROWS // HEADS) + m_M // HEADS, m_M % HEADS
    at_M = ((row + query_M).to(gl.int64) * H + g * (H // G) + head_M) * P
    live_M = (query_M < left) & (head_M < H // G)
    gl.store(out_ptr + at_M[:, None] + p_P[None, :], out_MP, mask=live_M[:, None])
