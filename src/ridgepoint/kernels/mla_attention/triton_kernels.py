# mypy: disallow-untyped-defs=False
"""The kernels of latent attention on GPUs, absorbed: queries are in the latent space, and a tile of latents serves as keys
and, from the same shared memory, as values. Rows of a tile are (query, head) pairs of one sequence.

As in paged attention, softmax runs in base 2 and float32 and slots outside a sequence are never loaded. One-byte blocks
carry two float32 scales per token, of its latent and of its rotary key, and are multiplied as there.
"""

import triton
import triton.language as tl

from ridgepoint.kernels.paged_attention.triton_kernels import add_coded, beside_codes
from ridgepoint.kernels.paged_attention.triton_plan import first_key
from ridgepoint.kernels.triton_call import after_previous


@triton.jit
def _scale_cell(cell_N, PAGE: tl.constexpr, WIDTH: tl.constexpr):
    """Where a token's two scales start in the cache seen as float32: they follow the codes of its block."""
    cell_N = cell_N.to(tl.int64)
    return cell_N // PAGE * (PAGE * (WIDTH + 8) // 4) + PAGE * WIDTH // 4 + cell_N % PAGE * 2


@triton.jit
def _load_channels(rows_N1, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    c_C = tl.arange(0, BLOCK)
    if WIDTH == BLOCK:
        return tl.load(rows_N1 + c_C[None, :])
    else:
        return tl.load(rows_N1 + c_C[None, :], mask=c_C[None, :] < WIDTH, other=0.0)


@triton.jit
def _attend_latents(
    acc_MC, max_M, sum_M, q_MC, q_MR, kv_ptr, scale_ptr, table_ptr, begin, end, open_begin, open_end, position_M, qk_scale, window,
    PAGE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    latent_q_M = tl.full((q_MC.shape[0],), 1.0, tl.float32)
    rotary_q_M = latent_q_M
    if SCALED:
        q_MC, latent_q_M = beside_codes(q_MC)
        q_MR, rotary_q_M = beside_codes(q_MR)
    i_N = tl.arange(0, BLOCK_N)
    for base in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        # What lies past the end is the last key once more, without weight: loads need no mask, and meet owned slots alone.
        at_N = tl.minimum(base + i_N, end - 1).to(tl.uint32)
        cell_N = tl.load(table_ptr + at_N // PAGE).to(tl.int32) * PAGE + (at_N % PAGE).to(tl.int32)
        row_N = cell_N.to(tl.int64) * (C + R)
        if SCALED:
            row_N += (cell_N // PAGE).to(tl.int64) * (8 * PAGE)
        latent_NC = _load_channels(kv_ptr + row_N[:, None], C, BLOCK_C).to(q_MC.dtype)
        key_NR = _load_channels(kv_ptr + row_N[:, None] + C, R, BLOCK_R).to(q_MR.dtype)
        rotary_MN = tl.dot(q_MR, tl.trans(key_NR), input_precision="ieee")
        logits_MN = tl.dot(q_MC, tl.trans(latent_NC), input_precision="ieee")
        if SCALED:
            scale_at_N = scale_ptr + _scale_cell(cell_N, PAGE, C + R)
            latent_scale_N = tl.load(scale_at_N)
            logits_MN *= latent_q_M[:, None] * latent_scale_N[None, :]
            rotary_MN *= rotary_q_M[:, None] * tl.load(scale_at_N + 1)[None, :]
        logits_MN = logits_MN * qk_scale + rotary_MN * qk_scale
        if (base < open_begin) | (base + BLOCK_N > open_end):
            n_N = base + i_N
            seen_MN = (n_N[None, :] <= position_M[:, None]) & (n_N < end)[None, :]
            if window > 0:
                seen_MN = seen_MN & (n_N[None, :] > position_M[:, None] - window)
            logits_MN = tl.where(seen_MN, logits_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(logits_MN, 1))
        shift_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)  # a row that has seen nothing yet
        weights_MN = tl.exp2(logits_MN - shift_M[:, None])
        fade_M = tl.exp2(max_M - shift_M)
        sum_M = sum_M * fade_M + tl.sum(weights_MN, 1)
        if SCALED:
            acc_MC = add_coded(acc_MC, fade_M, weights_MN, latent_scale_N, latent_NC)
        else:
            acc_MC *= fade_M[:, None]
            acc_MC = tl.dot(weights_MN.to(latent_NC.dtype), latent_NC, acc_MC, input_precision="ieee")
        max_M = new_max_M
    return acc_MC, max_M, sum_M


@triton.jit
def _load_queries(
    q_latent_ptr, q_rope_ptr, row_M, head_M, live_M, latent_head_stride, latent_stride, rope_stride, rope_head_stride,
    C: tl.constexpr, BLOCK_C: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    c_C, r_R = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    latent_M = q_latent_ptr + row_M * latent_stride + head_M * latent_head_stride
    rope_M = q_rope_ptr + row_M * rope_stride + head_M * rope_head_stride
    q_MC = tl.load(latent_M[:, None] + c_C[None, :], mask=live_M[:, None] & (c_C[None, :] < C), other=0)
    q_MR = tl.load(rope_M[:, None] + r_R[None, :], mask=live_M[:, None] & (r_R[None, :] < R), other=0)
    return q_MC, q_MR


@triton.jit(do_not_specialize=["window", "table_stride"])
def attend_splits(
    q_latent_ptr, q_rope_ptr, kv_ptr, scale_ptr, out_ptr, acc_ptr, max_ptr, sum_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr,
    split_tokens_ptr, counts_ptr, latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride, qk_scale, window,
    H: tl.constexpr, PAGE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sequences with one query: each program takes (item, tile of heads) pairs in turn. Tiles of one split are neighbours,
    so that its latents come from memory once and from the L2 cache after that. A split that is a whole sequence is the result;
    others leave what `combine_splits` joins."""
    after_previous()
    TILES: tl.constexpr = (H + BLOCK_M - 1) // BLOCK_M
    m_M, c_C = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C)
    num_work = tl.load(counts_ptr) * TILES
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item, head_M = work // TILES, work % TILES * BLOCK_M + m_M
        b = tl.load(items_ptr + 2 * item).to(tl.int64)
        split = tl.load(items_ptr + 2 * item + 1)
        context = tl.load(contexts_ptr + b).to(tl.int32)
        live_M = head_M < H
        row_M = tl.load(starts_ptr + b) + m_M * 0
        q_MC, q_MR = _load_queries(
            q_latent_ptr, q_rope_ptr, row_M, head_M, live_M, latent_head_stride, latent_stride, rope_stride,
            rope_head_stride, C, BLOCK_C, R, BLOCK_R,
        )  # fmt: skip
        oldest = first_key(context - 1, window)
        length = tl.load(split_tokens_ptr + b)
        begin = oldest + split * length
        end = tl.minimum(begin + length, context)
        acc_MC, max_M, sum_M = _attend_latents(
            tl.zeros((BLOCK_M, BLOCK_C), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32),
            tl.zeros((BLOCK_M,), tl.float32), q_MC, q_MR, kv_ptr, scale_ptr, tables_ptr + b * table_stride, begin, end,
            begin, end, context - 1 + m_M * 0, qk_scale, window, PAGE, C, BLOCK_C, R, BLOCK_R, BLOCK_N, SCALED, STAGES,
        )  # fmt: skip
        live_MC = live_M[:, None] & (c_C[None, :] < C)
        if context - oldest <= length:
            out_M = (row_M * H + head_M) * C
            out_MC = (acc_MC * (1.0 / sum_M)[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + out_M[:, None] + c_C[None, :], out_MC, mask=live_MC)
        else:
            out_M = (item * H + head_M).to(tl.int64)
            partial_MC = acc_MC.to(acc_ptr.dtype.element_ty)
            tl.store(acc_ptr + out_M[:, None] * C + c_C[None, :], partial_MC, mask=live_MC)
            tl.store(max_ptr + out_M, max_M, mask=live_M)
            tl.store(sum_ptr + out_M, sum_M, mask=live_M)


@triton.jit(do_not_specialize=["window", "table_stride"])
def attend_tiles(
    q_latent_ptr, q_rope_ptr, kv_ptr, scale_ptr, out_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr, counts_ptr,
    latent_head_stride, latent_stride, rope_stride, rope_head_stride, table_stride, qk_scale, window,
    H: tl.constexpr, PAGE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sequences with several queries: program (item, tile of rows), where an item is TILE queries with all their heads."""
    TILES: tl.constexpr = (TILE * H + BLOCK_M - 1) // BLOCK_M
    item = tl.program_id(0) // TILES
    if item >= tl.load(counts_ptr + 1):
        return
    b = tl.load(items_ptr + 2 * item).to(tl.int64)
    first_query = tl.load(items_ptr + 2 * item + 1) * TILE
    start = tl.load(starts_ptr + b)
    queries = (tl.load(starts_ptr + b + 1) - start).to(tl.int32)
    context = tl.load(contexts_ptr + b).to(tl.int32)
    m_M, c_C = tl.program_id(0) % TILES * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C)
    query_M, head_M = first_query + m_M // H, m_M % H
    live_M = (m_M < TILE * H) & (query_M < queries)
    row_M = start + query_M
    q_MC, q_MR = _load_queries(
        q_latent_ptr, q_rope_ptr, row_M, head_M, live_M, latent_head_stride, latent_stride, rope_stride, rope_head_stride,
        C, BLOCK_C, R, BLOCK_R,
    )  # fmt: skip
    last_position = tl.minimum(context - queries + first_query + TILE, context) - 1
    position_M = tl.minimum(context - queries + query_M, last_position)
    begin = first_key(context - queries + first_query, window)
    end = last_position + 1
    acc_MC, _, sum_M = _attend_latents(
        tl.zeros((BLOCK_M, BLOCK_C), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32), q_MC, q_MR, kv_ptr, scale_ptr, tables_ptr + b * table_stride, begin, end,
        first_key(last_position, window), context - queries + first_query + 1, position_M, qk_scale, window, PAGE, C, BLOCK_C, R, BLOCK_R, BLOCK_N, SCALED, STAGES,
    )  # fmt: skip
    out_MC = (acc_MC * (1.0 / sum_M)[:, None]).to(out_ptr.dtype.element_ty)
    out_M = (row_M * H + head_M) * C
    tl.store(out_ptr + out_M[:, None] + c_C[None, :], out_MC, mask=live_M[:, None] & (c_C[None, :] < C))


@triton.jit
def write_latents(
    kv_ptr, scale_ptr, latent_ptr, key_ptr, slots_ptr, latent_stride, key_stride,
    C: tl.constexpr, BLOCK_C: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr, PAGE: tl.constexpr,
    SCALED: tl.constexpr, LARGEST: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    """Program (t, part) stores the latent (0) or the rotary key (1) of token t; a negative slot is padding."""
    after_previous()
    t, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots_ptr + t)
    if slot < 0:
        return
    row = slot * (C + R)
    if SCALED:
        row += slot // PAGE * (8 * PAGE)
    if part == 0:
        _write_part(
            kv_ptr + row, scale_ptr + _scale_cell(slot, PAGE, C + R), latent_ptr + t * latent_stride, C, BLOCK_C, SCALED,
            LARGEST, INTEGER,
        )  # fmt: skip
    else:
        _write_part(
            kv_ptr + row + C, scale_ptr + _scale_cell(slot, PAGE, C + R) + 1, key_ptr + t * key_stride, R, BLOCK_R, SCALED,
            LARGEST, INTEGER,
        )  # fmt: skip


@triton.jit
def _write_part(
    out_ptr, scale_ptr, x_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, LARGEST: tl.constexpr,
    INTEGER: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < WIDTH, other=0)
    if SCALED:
        x = x.to(tl.float32)
        scale = tl.max(tl.abs(x), 0) / LARGEST
        x = x / tl.where(scale > 0, scale, 1.0)
        if INTEGER:
            x = tl.floor(x + 0.5)
        tl.store(scale_ptr, scale)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < WIDTH)
