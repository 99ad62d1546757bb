# mypy: disallow-untyped-defs=False
"""Prompts over latents, lifted: keys and values of each head are made out of the latents once and attended as they are.

A sequence goes this way where it takes fewer multiply-adds than moving its queries into the latent space (`Lift`); the
device decides that for itself. Lifted keys lie head by head, [head, row, channel], a sequence's rows from a multiple of the
key tile on, so that no load of attention needs a mask. Heads are taken a few at a time, as many as `ROOM_BYTES` hold.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ridgepoint.kernels.paged_attention.triton_plan import Cut, Lift, Plan, first_key
from ridgepoint.kernels.tuning import AttentionTile as Tile

ROOM_BYTES = 1 << 30  # of lifted keys and values at a time
KEY_TILE = 128  # keys lifted by one program


def lift_of(latent_dim: int, nope_dim: int, value_dim: int) -> Lift | None:
    """Lifting pays `C (N + V)` for each key, absorbing as much for each query; a pair of both costs `N + R + V` lifted and
    `2 C + R` absorbed. None where that is no gain."""
    gain = 2 * latent_dim - nope_dim - value_dim
    return Lift(latent_dim * (nope_dim + value_dim), gain, KEY_TILE) if gain > 0 else None


def attend_lifted(
    q_nope_THN: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    scaled: bool,
    page: int,
    w_uk_HNC: torch.Tensor,
    w_uv_HVC: torch.Tensor,
    plan: Plan,
    lift: Lift,
    scale: float,
    window: int | None,
    out_THV: torch.Tensor,
) -> None:
    """Fill the rows of `out_THV` that belong to lifted sequences."""
    num_tokens, num_heads, nope_dim = q_nope_THN.shape
    rope_dim, value_dim, latent_dim = q_rope_THR.shape[2], w_uv_HVC.shape[1], w_uk_HNC.shape[2]
    dtype, device = q_nope_THN.dtype, q_nope_THN.device
    tile = _tile(dtype, max(nope_dim, value_dim))
    work = plan.work(Cut(window, 1, tile.rows, lift=lift, lifted=True), num_tokens)
    if len(work.long_items) == 0:
        return
    rows = len(work.short_items) * KEY_TILE
    row_bytes = (nope_dim + value_dim) * q_nope_THN.element_size()
    together = max(1, min(num_heads, ROOM_BYTES // (rows * row_bytes)))
    k_HSN = torch.empty(together, rows, nope_dim, dtype=dtype, device=device)
    v_HSV = torch.empty(together, rows, value_dim, dtype=dtype, device=device)
    r_SR = torch.empty(rows, rope_dim, dtype=dtype, device=device)
    widths = {
        "N": nope_dim, "BLOCK_NOPE": max(16, triton.next_power_of_2(nope_dim)), "R": rope_dim,
        "BLOCK_R": max(16, triton.next_power_of_2(rope_dim)), "V": value_dim, "BLOCK_V": max(16, triton.next_power_of_2(value_dim)),
    }  # fmt: skip
    sequences = (plan.query_starts_B1, plan.context_lens_B)
    w_uk_HNC, w_uv_HVC = w_uk_HNC.to(dtype).contiguous(), w_uv_HVC.to(dtype).contiguous()
    for first in range(0, num_heads, together):
        heads = min(together, num_heads - first)
        lift_keys[(len(work.short_items) * heads,)](
            kv, kv.view(torch.float32) if scaled else kv, w_uk_HNC[first:], w_uv_HVC[first:], k_HSN, v_HSV, r_SR, *sequences,
            plan.block_tables_BN, work.short_items, work.counts, plan.block_tables_BN.stride(0), rows, heads, window or 0,
            C=latent_dim, **widths, PAGE=page, SCALED=scaled, KEYS=KEY_TILE, BLOCK_C=tile.keys, num_warps=8,
            num_stages=tile.stages,
        )  # fmt: skip
        attend_rows[(len(work.long_items) * heads,)](
            q_nope_THN[:, first:], q_rope_THR[:, first:], k_HSN, v_HSV, r_SR, out_THV[:, first:], *sequences, work.long_items,
            work.first_item_B, work.counts, *q_nope_THN.stride()[:2], *q_rope_THR.stride()[:2], *out_THV.stride()[:2], rows, heads,
            scale * math.log2(math.e), window or 0, **widths, KEYS=KEY_TILE, BLOCK_M=tile.rows, BLOCK_N=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def _tile(dtype: torch.dtype, width: int) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, warps=8, stages=1)
    return Tile(128, 64 if width <= 128 else 32, warps=8, stages=3)


@triton.jit(do_not_specialize=["table_stride", "rows", "heads", "window"])
def lift_keys(
    kv_ptr, scale_ptr, w_uk_ptr, w_uv_ptr, k_ptr, v_ptr, r_ptr, starts_ptr, contexts_ptr, tables_ptr, items_ptr, counts_ptr,
    table_stride, rows, heads, window,
    C: tl.constexpr, N: tl.constexpr, BLOCK_NOPE: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr, V: tl.constexpr,
    BLOCK_V: tl.constexpr, PAGE: tl.constexpr, SCALED: tl.constexpr, KEYS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (item, head): keys and values of one head out of KEYS latents; the first head's also copies rotary keys. What
    lies past a sequence's end is its last key once more."""
    item, h = tl.program_id(0) // heads, (tl.program_id(0) % heads).to(tl.int64)
    if item >= tl.load(counts_ptr):
        return
    b = tl.load(items_ptr + 2 * item).to(tl.int64)
    context = tl.load(contexts_ptr + b).to(tl.int32)
    queries = (tl.load(starts_ptr + b + 1) - tl.load(starts_ptr + b)).to(tl.int32)
    oldest = first_key(context - queries, window)
    i_S = tl.arange(0, KEYS)
    at_S = tl.minimum(oldest + tl.load(items_ptr + 2 * item + 1) * KEYS + i_S, context - 1).to(tl.uint32)
    page_S = tl.load(tables_ptr + b * table_stride + at_S // PAGE).to(tl.int64)
    token_S = (at_S % PAGE).to(tl.int64)
    row_S = (page_S * PAGE + token_S) * (C + R)
    if SCALED:
        row_S += page_S * (8 * PAGE)
        scale_S = scale_ptr + page_S * (PAGE * (C + R + 8) // 4) + PAGE * (C + R) // 4 + token_S * 2
    n_N, v_V, c_C, r_R = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    live_N, live_V, live_R = (n_N < N)[:, None], (v_V < V)[:, None], (r_R < R)[None, :]
    dtype = k_ptr.dtype.element_ty
    k_SN = tl.zeros((KEYS, BLOCK_NOPE), tl.float32)
    v_SV = tl.zeros((KEYS, BLOCK_V), tl.float32)
    for c in tl.range(0, C, BLOCK_C):
        live_C = (c + c_C < C)[None, :]
        latent_SC = tl.load(kv_ptr + row_S[:, None] + (c + c_C)[None, :], mask=live_C, other=0.0).to(dtype)
        uk_NC = tl.load(w_uk_ptr + (h * N + n_N)[:, None] * C + (c + c_C)[None, :], mask=live_N & live_C, other=0.0)
        uv_VC = tl.load(w_uv_ptr + (h * V + v_V)[:, None] * C + (c + c_C)[None, :], mask=live_V & live_C, other=0.0)
        k_SN = tl.dot(latent_SC, tl.trans(uk_NC), k_SN, input_precision="ieee")
        v_SV = tl.dot(latent_SC, tl.trans(uv_VC), v_SV, input_precision="ieee")
    if SCALED:
        latent_scale_S = tl.load(scale_S)[:, None]
        k_SN *= latent_scale_S
        v_SV *= latent_scale_S
    out_S = item.to(tl.int64) * KEYS + i_S
    tl.store(k_ptr + (h * rows + out_S)[:, None] * N + n_N[None, :], k_SN.to(dtype), mask=(n_N < N)[None, :])
    tl.store(v_ptr + (h * rows + out_S)[:, None] * V + v_V[None, :], v_SV.to(dtype), mask=(v_V < V)[None, :])
    if h == 0:
        r_SR = tl.load(kv_ptr + row_S[:, None] + C + r_R[None, :], mask=live_R, other=0.0).to(tl.float32)
        if SCALED:
            r_SR *= tl.load(scale_S + 1)[:, None]
        tl.store(r_ptr + out_S[:, None] * R + r_R[None, :], r_SR.to(dtype), mask=live_R)


@triton.jit(do_not_specialize=["rows", "heads", "window"])
def attend_rows(
    q_ptr, q_rope_ptr, k_ptr, v_ptr, r_ptr, out_ptr, starts_ptr, contexts_ptr, items_ptr, first_item_ptr, counts_ptr,
    q_stride, q_head_stride, rope_stride, rope_head_stride, out_stride, out_head_stride, rows, heads, qk_scale, window,
    N: tl.constexpr, BLOCK_NOPE: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
    KEYS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (item, head): BLOCK_M queries of one head over lifted keys."""
    item, h = tl.program_id(0) // heads, (tl.program_id(0) % heads).to(tl.int64)
    if item >= tl.load(counts_ptr + 1):
        return
    b = tl.load(items_ptr + 2 * item).to(tl.int64)
    first_query = tl.load(items_ptr + 2 * item + 1) * BLOCK_M
    start = tl.load(starts_ptr + b)
    queries = (tl.load(starts_ptr + b + 1) - start).to(tl.int32)
    context = tl.load(contexts_ptr + b).to(tl.int32)
    i_M, i_N = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    n_D, r_R, v_V = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_V)
    live_N, live_R, live_V = (n_D < N)[None, :], (r_R < R)[None, :], (v_V < V)[None, :]
    live_M = (first_query + i_M < queries)[:, None]
    row_M = (start + first_query + i_M).to(tl.int64)
    q_MN = tl.load(
        q_ptr + h * q_head_stride + row_M[:, None] * q_stride + n_D[None, :], mask=live_M & live_N, other=0.0
    )
    q_MR = tl.load(
        q_rope_ptr + h * rope_head_stride + row_M[:, None] * rope_stride + r_R[None, :], mask=live_M & live_R, other=0
    )
    # Positions count from the oldest lifted key on.
    oldest = first_key(context - queries, window)
    first_position = context - queries + first_query - oldest
    last_position = tl.minimum(first_position + BLOCK_M, context - oldest) - 1
    position_M = tl.minimum(first_position + i_M, last_position)
    begin = first_key(first_position, window) // BLOCK_N * BLOCK_N
    open_begin, open_end = first_key(last_position, window), first_position + 1
    base_row = tl.load(first_item_ptr + b).to(tl.int64) * KEYS
    k_ptr += (h * rows + base_row) * N
    v_ptr += (h * rows + base_row) * V
    r_ptr += base_row * R
    max_M, sum_M = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    acc_MV = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for base in tl.range(begin, last_position + 1, BLOCK_N):
        n_N = base + i_N
        k_ND = tl.load(k_ptr + n_N[:, None] * N + n_D[None, :], mask=live_N, other=0.0)
        r_NR = tl.load(r_ptr + n_N[:, None] * R + r_R[None, :], mask=live_R, other=0.0)
        logits_MN = tl.dot(q_MN, tl.trans(k_ND), input_precision="ieee")
        logits_MN = tl.dot(q_MR, tl.trans(r_NR), logits_MN, input_precision="ieee") * qk_scale
        if (base < open_begin) | (base + BLOCK_N > open_end):
            seen_MN = n_N[None, :] <= position_M[:, None]
            if window > 0:
                seen_MN = seen_MN & (n_N[None, :] > position_M[:, None] - window)
            logits_MN = tl.where(seen_MN, logits_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(logits_MN, 1))
        shift_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        weights_MN = tl.exp2(logits_MN - shift_M[:, None])
        fade_M = tl.exp2(max_M - shift_M)
        sum_M = sum_M * fade_M + tl.sum(weights_MN, 1)
        v_NV = tl.load(v_ptr + n_N[:, None] * V + v_V[None, :], mask=live_V, other=0.0)
        acc_MV = tl.dot(weights_MN.to(v_NV.dtype), v_NV, acc_MV * fade_M[:, None], input_precision="ieee")
        max_M = new_max_M
    out_MV = (acc_MV * (1.0 / sum_M)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + h * out_head_stride + row_M[:, None] * out_stride + v_V[None, :], out_MV, mask=live_M & live_V)
