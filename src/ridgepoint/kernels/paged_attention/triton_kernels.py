# mypy: disallow-untyped-defs=False
"""The kernels of paged attention on GPUs. Rows of a tile are (query, query head) pairs of one key-value head, so that its
keys are read once for all of them.

Softmax runs in base 2 and float32. Keys and values outside a sequence are never loaded (masked loads give zeros), so what
lies in the unowned slots of a block cannot matter, NaN included. One-byte blocks carry one float32 scale per token and
head; it multiplies the logits (keys) and the weights (values), never the tile. Codes are multiplied as float16, which holds
all of them and is one instruction away from fp8 (bfloat16 is four); what meets them is scaled to be at most 1.
"""

import triton
import triton.language as tl

from ridgepoint.kernels.paged_attention.triton_plan import first_key
from ridgepoint.kernels.triton_call import after_previous

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_rows(kv_ptr, row_N, live_N, p_P, P: tl.constexpr):
    return tl.load(kv_ptr + row_N[:, None] + p_P[None, :], mask=live_N[:, None] & (p_P[None, :] < P), other=0.0)


@triton.jit
def beside_codes(q_MP):
    """Queries to be multiplied with codes, and what each row of the product is to be multiplied with."""
    largest_M = tl.max(tl.abs(q_MP.to(tl.float32)), 1)
    largest_M = tl.where(largest_M > 0, largest_M, 1.0)
    if q_MP.dtype != tl.float32:
        q_MP = (q_MP.to(tl.float32) / largest_M[:, None]).to(tl.float16)
    else:
        q_MP = q_MP / largest_M[:, None]
    return q_MP, largest_M


@triton.jit
def add_coded(acc_MP, fade_M, weights_MN, scale_N, v_NP):
    """`fade * acc + (weights * scales) @ codes`, the scales divided by their largest before the product."""
    largest = tl.max(scale_N, 0)
    largest = tl.where(largest > 0, largest, 1.0)
    weights_MN = (weights_MN * (scale_N / largest)[None, :]).to(v_NP.dtype)
    return tl.dot(weights_MN, v_NP, acc_MP * (fade_M / largest)[:, None], input_precision="ieee") * largest


@triton.jit
def _attend_keys(
    acc_MP, max_M, sum_M, q_MP, kv_ptr, scale_ptr, table_ptr, begin, end, end_key, position_M, g, scale_M, window,
    G: tl.constexpr, PAGE: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALED: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One pass over keys `[begin, end)` in tiles, of which those below `end_key` exist. Not MASKED: every row sees all."""
    HEAD: tl.constexpr = PAGE * (P + 4) if SCALED else PAGE * P  # elements of one head's keys, or values, in a block
    p_P = tl.arange(0, BLOCK_P)
    for base in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        n_N = base + tl.arange(0, BLOCK_N)
        live_N = n_N < end_key
        page_N = tl.load(table_ptr + n_N // PAGE, mask=live_N, other=0).to(tl.int32)
        # A block is [plane, head, what HEAD counts]; the values' plane follows the keys'.
        head_N, token_N = (page_N * (2 * G) + g).to(tl.int64), n_N % PAGE
        row_N = head_N * HEAD + token_N * P
        k_NP = _load_rows(kv_ptr, row_N, live_N, p_P, P)
        logits_MN = tl.dot(q_MP, tl.trans(k_NP.to(q_MP.dtype)), input_precision="ieee") * scale_M[:, None]
        if SCALED:
            scale_at_N = scale_ptr + head_N * (HEAD // 4) + (PAGE * P // 4 + token_N)
            logits_MN *= tl.load(scale_at_N, mask=live_N, other=0.0)[None, :]
        if MASKED:
            seen_MN = (n_N[None, :] <= position_M[:, None]) & live_N[None, :]
            if window > 0:
                seen_MN = seen_MN & (n_N[None, :] > position_M[:, None] - window)
            logits_MN = tl.where(seen_MN, logits_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(logits_MN, 1))
        # A row that has seen nothing yet has no maximum to subtract.
        shift_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M) if MASKED else new_max_M
        weights_MN = tl.exp2(logits_MN - shift_M[:, None])
        fade_M = tl.exp2(max_M - shift_M)
        sum_M = sum_M * fade_M + tl.sum(weights_MN, 1)
        v_NP = _load_rows(kv_ptr, row_N + G * HEAD, live_N, p_P, P)
        if SCALED:
            value_scale_N = tl.load(scale_at_N + G * HEAD // 4, mask=live_N, other=0.0)
            acc_MP = add_coded(acc_MP, fade_M, weights_MN, value_scale_N, v_NP.to(q_MP.dtype))
        else:
            acc_MP *= fade_M[:, None]
            acc_MP = tl.dot(weights_MN.to(q_MP.dtype), v_NP, acc_MP, input_precision="ieee")
        max_M = new_max_M
    return acc_MP, max_M, sum_M


@triton.jit
def _start_softmax(sinks_ptr, head_M, live_M, BLOCK_M: tl.constexpr, HAS_SINKS: tl.constexpr, first):
    """(maximum, sum) before any key: a sink is a logit whose value is zero, counted where `first`."""
    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    if HAS_SINKS:
        sink_M = tl.load(sinks_ptr + head_M, mask=live_M, other=0).to(tl.float32) * LOG2E
        max_M = tl.where(first, sink_M, max_M)
        sum_M = tl.where(first, 1.0, sum_M)
    return max_M, sum_M


@triton.jit(do_not_specialize=["window", "table_stride"])
def attend_splits(
    q_ptr, kv_ptr, scale_ptr, sinks_ptr, acc_ptr, max_ptr, sum_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr, split_tokens_ptr, counts_ptr,
    q_stride, table_stride, qk_scale, window,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALED: tl.constexpr,
    HAS_SINKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Short sequences: each program takes (item, key-value head) pairs in turn, and leaves the unnormalised result of a
    split with its maximum and sum."""
    after_previous()
    GROUP: tl.constexpr = H // G
    ROWS: tl.constexpr = BLOCK_M // GROUP * GROUP
    m_M = tl.arange(0, BLOCK_M)
    p_P = tl.arange(0, BLOCK_P)
    num_work = tl.load(counts_ptr) * G
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item, g = work // G, work % G
        b = tl.load(items_ptr + 2 * item).to(tl.int64)
        split = tl.load(items_ptr + 2 * item + 1)
        start = tl.load(starts_ptr + b)
        queries = (tl.load(starts_ptr + b + 1) - start).to(tl.int32)
        context = tl.load(contexts_ptr + b).to(tl.int32)
        query_M, head_M = m_M // GROUP, g * GROUP + m_M % GROUP
        live_M = (m_M < ROWS) & (query_M < queries)
        live_MP = live_M[:, None] & (p_P[None, :] < P)
        q_MP = tl.load(
            q_ptr + ((start + query_M) * q_stride + head_M * P)[:, None] + p_P[None, :], mask=live_MP, other=0
        )
        scale_M = tl.full((BLOCK_M,), 1.0, tl.float32) * qk_scale
        if SCALED:
            q_MP, largest_M = beside_codes(q_MP)
            scale_M *= largest_M
        position_M = context - queries + query_M
        oldest = first_key(context - queries, window)
        length = tl.load(split_tokens_ptr + b)
        begin = oldest + split * length
        end = tl.minimum(begin + length, context)
        max_M, sum_M = _start_softmax(sinks_ptr, head_M, live_M, BLOCK_M, HAS_SINKS, split == 0)
        acc_MP, max_M, sum_M = _attend_keys(
            tl.zeros((BLOCK_M, BLOCK_P), tl.float32), max_M, sum_M, q_MP, kv_ptr, scale_ptr, tables_ptr + b * table_stride,
            begin, end, end, position_M, g, scale_M, window, G, PAGE, P, BLOCK_P, BLOCK_N, SCALED, True, STAGES,
        )  # fmt: skip
        row_M = (work * ROWS + m_M).to(tl.int64)
        acc_MP = acc_MP.to(acc_ptr.dtype.element_ty)
        tl.store(acc_ptr + row_M[:, None] * P + p_P[None, :], acc_MP, mask=live_MP)
        tl.store(max_ptr + row_M, max_M, mask=live_M)
        tl.store(sum_ptr + row_M, sum_M, mask=live_M)


@triton.jit(do_not_specialize=["num_tokens", "num_seqs", "window", "short_queries"])
def combine_splits(
    acc_ptr, max_ptr, sum_ptr, out_ptr, starts_ptr, contexts_ptr, first_item_ptr, split_tokens_ptr,
    num_tokens, num_seqs, window, short_queries,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, ROWS: tl.constexpr,
    MAX_SPLITS: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Program (b, h) joins the splits of a short sequence, always in the same order; single ones too only if WHOLE. Rows past the last sequence become
    zero: they pad a recorded step, and whatever comes after should meet numbers there."""
    after_previous()
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    GROUP: tl.constexpr = H // G
    p_P = tl.arange(0, BLOCK_P)
    start = tl.load(starts_ptr + b)
    queries = (tl.load(starts_ptr + b + 1) - start).to(tl.int32)
    context = tl.load(contexts_ptr + b).to(tl.int32)
    splits = tl.cdiv(context - first_key(context - queries, window), tl.load(split_tokens_ptr + b))
    if (queries > 0) & (queries <= short_queries) & (WHOLE | (splits > 1)):
        item = tl.load(first_item_ptr + b).to(tl.int64)
        s_S = tl.arange(0, MAX_SPLITS)
        for i in range(0, queries):
            row_S = ((item + s_S) * G + h // GROUP) * ROWS + i * GROUP + h % GROUP
            max_S = tl.load(max_ptr + row_S, mask=s_S < splits, other=float("-inf"))
            best = tl.max(max_S, 0)
            total = tl.sum(tl.load(sum_ptr + row_S, mask=s_S < splits, other=0) * tl.exp2(max_S - best), 0)
            out_P = tl.zeros((BLOCK_P,), tl.float32)
            for base in range(0, splits, CHUNK):
                c_C = base + tl.arange(0, CHUNK)
                row_C = ((item + c_C) * G + h // GROUP) * ROWS + i * GROUP + h % GROUP
                weight_C = tl.exp2(tl.load(max_ptr + row_C, mask=c_C < splits, other=float("-inf")) - best) / total
                live_CP = (c_C < splits)[:, None] & (p_P[None, :] < P)
                acc_CP = tl.load(acc_ptr + row_C[:, None] * P + p_P[None, :], mask=live_CP, other=0).to(tl.float32)
                out_P += tl.sum(acc_CP * weight_C[:, None], 0)
            tl.store(out_ptr + ((start + i) * H + h) * P + p_P, out_P.to(out_ptr.dtype.element_ty), mask=p_P < P)
    end = tl.load(starts_ptr + num_seqs)
    for row in range(end + b, num_tokens, num_seqs):
        tl.store(out_ptr + (row * H + h) * P + p_P, tl.zeros((BLOCK_P,), out_ptr.dtype.element_ty), mask=p_P < P)


@triton.jit(do_not_specialize=["window", "table_stride"])
def attend_tiles(
    q_ptr, kv_ptr, scale_ptr, sinks_ptr, out_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr, counts_ptr,
    q_stride, table_stride, qk_scale, window,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALED: tl.constexpr, HAS_SINKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Long sequences: program (item, g) attends for one tile of queries. Keys that every row sees pass without a mask,
    between a masked head (a window's edge) and a masked tail (the diagonal)."""
    item, g = tl.program_id(0) // G, tl.program_id(0) % G
    if item >= tl.load(counts_ptr + 1):
        return
    GROUP: tl.constexpr = H // G
    TILE: tl.constexpr = BLOCK_M // GROUP
    b = tl.load(items_ptr + 2 * item).to(tl.int64)
    tile = tl.load(items_ptr + 2 * item + 1)
    start = tl.load(starts_ptr + b)
    queries = (tl.load(starts_ptr + b + 1) - start).to(tl.int32)
    context = tl.load(contexts_ptr + b).to(tl.int32)
    m_M = tl.arange(0, BLOCK_M)
    p_P = tl.arange(0, BLOCK_P)
    query_M, head_M = tile * TILE + m_M // GROUP, g * GROUP + m_M % GROUP
    live_M = (m_M < TILE * GROUP) & (query_M < queries)
    live_MP = live_M[:, None] & (p_P[None, :] < P)
    row_M = start + query_M
    q_MP = tl.load(q_ptr + (row_M * q_stride + head_M * P)[:, None] + p_P[None, :], mask=live_MP, other=0)
    scale_M = tl.full((BLOCK_M,), 1.0, tl.float32) * qk_scale
    if SCALED:
        q_MP, largest_M = beside_codes(q_MP)
        scale_M *= largest_M
    first_position = context - queries + tile * TILE
    last_position = tl.minimum(first_position + TILE, context) - 1
    position_M = tl.minimum(context - queries + query_M, last_position)
    begin = first_key(first_position, window) // BLOCK_N * BLOCK_N
    open_end = tl.maximum((first_position + 1) // BLOCK_N * BLOCK_N, begin)
    open_begin = tl.minimum(tl.cdiv(first_key(last_position, window), BLOCK_N) * BLOCK_N, open_end)
    end = last_position + 1
    table_ptr = tables_ptr + b * table_stride
    max_M, sum_M = _start_softmax(sinks_ptr, head_M, live_M, BLOCK_M, HAS_SINKS, True)
    acc_MP = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    acc_MP, max_M, sum_M = _attend_keys(
        acc_MP, max_M, sum_M, q_MP, kv_ptr, scale_ptr, table_ptr, begin, open_begin, end, position_M, g, scale_M, window,
        G, PAGE, P, BLOCK_P, BLOCK_N, SCALED, True, 1,
    )  # fmt: skip
    acc_MP, max_M, sum_M = _attend_keys(
        acc_MP, max_M, sum_M, q_MP, kv_ptr, scale_ptr, table_ptr, open_begin, open_end, open_end, position_M, g, scale_M,
        window, G, PAGE, P, BLOCK_P, BLOCK_N, SCALED, False, STAGES,
    )  # fmt: skip
    acc_MP, max_M, sum_M = _attend_keys(
        acc_MP, max_M, sum_M, q_MP, kv_ptr, scale_ptr, table_ptr, open_end, end, end, position_M, g, scale_M, window,
        G, PAGE, P, BLOCK_P, BLOCK_N, SCALED, True, 1,
    )  # fmt: skip
    out_MP = (acc_MP / sum_M[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + ((row_M * H + head_M) * P)[:, None] + p_P[None, :], out_MP, mask=live_MP)


@triton.jit
def write_cells(
    kv_ptr, scale_ptr, k_ptr, v_ptr, slots_ptr, k_stride, v_stride,
    G: tl.constexpr, BLOCK_G: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr, PAGE: tl.constexpr,
    SCALED: tl.constexpr, LARGEST: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    """Program (t, plane) stores the keys (0) or values (1) of token t; a negative slot is padding."""
    after_previous()
    t, plane = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + t)
    if slot < 0:
        return
    g_G = tl.arange(0, BLOCK_G)
    p_P = tl.arange(0, BLOCK_P)
    live_GP = (g_G < G)[:, None] & (p_P[None, :] < P)
    if plane == 0:
        x_GP = tl.load(k_ptr + t * k_stride + (g_G * P)[:, None] + p_P[None, :], mask=live_GP, other=0)
    else:
        x_GP = tl.load(v_ptr + t * v_stride + (g_G * P)[:, None] + p_P[None, :], mask=live_GP, other=0)
    HEAD: tl.constexpr = PAGE * (P + 4) if SCALED else PAGE * P
    head_G, token = (slot // PAGE * 2 + plane) * G + g_G, slot % PAGE
    if SCALED:
        x_GP = x_GP.to(tl.float32)
        scale_G = tl.max(tl.abs(x_GP), 1) / LARGEST
        x_GP = x_GP / tl.where(scale_G > 0, scale_G, 1.0)[:, None]
        if INTEGER:
            x_GP = tl.floor(x_GP + 0.5)
        scale_at_G = head_G * (HEAD // 4) + PAGE * P // 4 + token
        tl.store(scale_ptr + scale_at_G, scale_G, mask=g_G < G)
    tl.store(
        kv_ptr + (head_G * HEAD + token * P)[:, None] + p_P[None, :], x_GP.to(kv_ptr.dtype.element_ty), mask=live_GP
    )
