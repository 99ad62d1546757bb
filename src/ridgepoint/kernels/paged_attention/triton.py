"""Paged attention on GPUs: decoding split over keys, prompts in tiles, both over the same blocks in one step.

A block is `[K or V, head, token, channel]`, so that a head's tokens are one stretch of memory. In one-byte types (fp8
e4m3, int8) each head's channels are followed by one float32 scale per token. Nothing here reads a number from the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.paged_attention import gluon_tiles
from ridgepoint.kernels.paged_attention import triton_kernels as kernels
from ridgepoint.kernels.paged_attention.known import Known
from ridgepoint.kernels.paged_attention.triton_plan import MAX_SPLITS, Cut, Plan, Work
from ridgepoint.kernels.rope.triton import norm_rope_store
from ridgepoint.kernels.triton_call import INTERPRETED, describable, num_multiprocessors, overlapped
from ridgepoint.kernels.tuning import AttentionTile as Tile
from ridgepoint.kernels.tuning import choose

MASKS_UNWRITTEN = True  # a slot outside its sequence is never loaded, so blocks need not be cleared for a new owner

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # of a one-byte type: where a token's largest channel lands
PLAIN = (torch.bfloat16, torch.float16, torch.float32)
KINDS = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8",
    torch.int8: "int8",
}
COMBINE_CHUNK = 8  # splits joined at once


def split_tile(head_dim: int, group: int, bytes_per_channel: int) -> Tile:
    """For short sequences: memory-bound, so what counts is bytes in flight on a multiprocessor.

    Block numbers are fetched a stage before the rows they point at, so 5 stages keep two tiles of keys and values in
    shared memory; as many programs share a multiprocessor as their registers let (Triton 3.6, sm_90)."""
    rows = max(16, triton.next_power_of_2(group))
    if bytes_per_channel == 4:
        return Tile(rows, 32, warps=4, stages=4)
    keys = 64 if head_dim <= 128 else 32
    if bytes_per_channel == 1:
        return Tile(rows, 32 if head_dim <= 64 else keys, warps=4, stages=5, per_sm=2)
    return Tile(rows, keys, warps=4, stages=5, per_sm=4 if head_dim <= 64 else 3 if head_dim <= 128 else 2)


def query_tile(head_dim: int, group: int, bytes_per_channel: int, is_coded: bool) -> Tile:
    """For long ones: warp groups of 64 rows, as the matrix instruction takes them. Tiles are as large as leaves a program's
    registers unspilled; one-byte codes are widened there too."""
    group_rows = triton.next_power_of_2(group)
    if bytes_per_channel == 4:
        return Tile(max(32, group_rows), 32, warps=8, stages=1)
    if head_dim > 128:
        return Tile(max(64, group_rows), 32, warps=8, stages=3)
    keys = 128 if head_dim <= 64 and not is_coded else 32 if head_dim > 64 and is_coded else 64
    return Tile(max(128, group_rows), keys, warps=8, stages=3)


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a split's result before it is joined with the others: bfloat16 beside bfloat16, whose range holds any sum and whose
    rounding the result has anyway; it is written and read again, and half the bytes are 3 % of a long decode. Maxima and
    sums stay float32."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def allocate(
    num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    if dtype in PLAIN:
        return torch.zeros(num_blocks, 2, num_kv_heads, block_tokens, head_dim, dtype=dtype, device=device)
    if dtype not in LARGEST:
        raise ConfigError(
            f"keys and values cannot be kept as {dtype}; allowed: {', '.join(map(str, (*PLAIN, *LARGEST)))}"
        )
    if block_tokens * head_dim % 4:
        raise ConfigError(
            f"one-byte blocks of {block_tokens} tokens x {head_dim} channels leave their scales unaligned"
        )
    row_bytes = block_tokens * (head_dim + 4)
    return torch.zeros(num_blocks, 2, num_kv_heads, row_bytes, dtype=torch.uint8, device=device).view(dtype)


def prepare(
    query_starts_B1: torch.Tensor, context_lens_B: torch.Tensor, block_tables_BN: torch.Tensor, block_tokens: int,
    prompt_lens_B: torch.Tensor | None = None, known: Known | None = None,
) -> Plan:  # fmt: skip
    """A step of as many query rows as sequences only decodes: no sequence in it may have two."""
    return Plan(query_starts_B1, context_lens_B, block_tables_BN, block_tokens, known)


def write(kv: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, slots_T: torch.Tensor) -> None:
    k_TGP, v_TGP = _rows(k_TGP), _rows(v_TGP)
    num_tokens, num_kv_heads, head_dim = k_TGP.shape
    if num_tokens == 0:
        return
    scaled, page = _layout(kv, head_dim)
    kernels.write_cells[(num_tokens, 2)](
        kv, kv.view(torch.float32) if scaled else kv, k_TGP, v_TGP, slots_T, k_TGP.stride(0), v_TGP.stride(0),
        G=num_kv_heads, BLOCK_G=triton.next_power_of_2(num_kv_heads), P=head_dim, BLOCK_P=triton.next_power_of_2(head_dim),
        PAGE=page, SCALED=scaled, LARGEST=LARGEST.get(kv.dtype, 1.0), INTEGER=kv.dtype == torch.int8, num_warps=4, **overlapped(),
    )  # fmt: skip


def rotate_and_write(
    kv: torch.Tensor, q_THP: torch.Tensor, k_TGP: torch.Tensor, v_TGP: torch.Tensor, norms: tuple[torch.Tensor | None, torch.Tensor | None],
    eps: float, tables: tuple[torch.Tensor, torch.Tensor], interleaved: bool, slots_T: torch.Tensor,
) -> torch.Tensor | None:  # fmt: skip
    return norm_rope_store(q_THP, k_TGP, v_TGP, *norms, eps, *tables, interleaved, kv, slots_T)


def attend(
    q_THP: torch.Tensor, kv: torch.Tensor, plan: Plan, scale: float, window: int | None, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    q_THP = _rows(q_THP)
    num_tokens, num_heads, head_dim = q_THP.shape
    out_THP = q_THP.new_empty(q_THP.shape)
    if num_tokens == 0 or plan.num_seqs == 0:
        return out_THP.zero_()
    scaled, _ = _layout(kv, head_dim)
    num_kv_heads = kv.shape[2]
    group = num_heads // num_kv_heads
    shape_of_heads, kind = (num_heads, num_kv_heads, head_dim, window or 0), KINDS[kv.dtype]
    short: Tile = choose(
        "paged_decode", kind, plan.num_seqs, shape_of_heads, q_THP.device,
        lambda: split_tile(head_dim, group, kv.element_size()),
    )  # fmt: skip
    long: Tile = choose(
        "paged_prompt", kind, num_tokens, shape_of_heads, q_THP.device,
        lambda: query_tile(head_dim, group, q_THP.element_size(), scaled),
    )  # fmt: skip
    if long.roles and not _fits_boxes(plan.block_tokens):  # tuned over blocks of another size
        long = query_tile(head_dim, group, q_THP.element_size(), scaled)
    cut = Cut(window, short.rows // group, tile_queries(long, group), split_keys=short.split_keys)
    work = plan.work(cut, num_tokens)
    shape: dict[str, Any] = {
        "H": num_heads, "G": num_kv_heads, "P": head_dim, "BLOCK_P": max(16, triton.next_power_of_2(head_dim)),
    }  # fmt: skip
    tile_facts = {"PAGE": plan.block_tokens, "SCALED": scaled, "HAS_SINKS": sinks_H is not None}
    scales = kv.view(torch.float32) if scaled else kv
    sinks = q_THP if sinks_H is None else sinks_H
    sequences = (plan.query_starts_B1, plan.context_lens_B, plan.block_tables_BN)
    numbers = (q_THP.stride(0), plan.block_tables_BN.stride(0), scale * math.log2(math.e), window or 0)
    if len(work.long_items) and long.roles:
        _attend_by_roles(q_THP, kv, sinks, out_THP, plan, work, scale, window, sinks_H is not None)
    elif len(work.long_items):
        kernels.attend_tiles[(len(work.long_items) * num_kv_heads,)](
            q_THP, kv, scales, sinks, out_THP, *sequences, work.long_items, work.counts, *numbers,
            **shape, **tile_facts, BLOCK_M=long.rows, BLOCK_N=long.keys, STAGES=long.stages, num_warps=long.warps,
        )  # fmt: skip
    if plan.has_only_long(cut):
        return out_THP
    rows = short.rows // group * group
    partial_rows = len(work.short_items) * num_kv_heads * rows
    acc = torch.empty(partial_rows, head_dim, dtype=partial_dtype(q_THP.dtype), device=q_THP.device)
    max_, sum_ = torch.empty(2, partial_rows, dtype=torch.float32, device=q_THP.device)
    kernels.attend_splits[(short.per_sm * num_multiprocessors(q_THP.device),)](
        q_THP, kv, scales, sinks, acc, max_, sum_, *sequences, work.short_items, work.split_tokens_B, work.counts, *numbers,
        **shape, **tile_facts, BLOCK_M=short.rows, BLOCK_N=short.keys, STAGES=short.stages,
        num_warps=short.warps, **overlapped(),
    )  # fmt: skip
    kernels.combine_splits[(plan.num_seqs, num_heads)](
        acc, max_, sum_, out_THP, *sequences[:2], work.first_item_B, work.split_tokens_B, num_tokens, plan.num_seqs, window or 0,
        cut.short_queries, **shape, MAX_SPLITS=MAX_SPLITS, ROWS=rows, CHUNK=COMBINE_CHUNK, WHOLE=True, num_warps=1, **overlapped(),
    )  # fmt: skip
    return out_THP


def _attend_by_roles(
    q_THP: torch.Tensor, kv: torch.Tensor, sinks: torch.Tensor, out_THP: torch.Tensor, plan: Plan, work: Work, scale: float,
    window: int | None, has_sinks: bool,
) -> None:  # fmt: skip
    """Long sequences by `gluon_tiles`, a program on each multiprocessor."""
    if scale <= 0:
        raise ConfigError(f"attention of prompts takes a positive scale, got {scale}")
    _, num_heads, head_dim = q_THP.shape
    num_kv_heads, page = kv.shape[2:4]
    heads = triton.next_power_of_2(num_heads // num_kv_heads)
    boxes, width = gluon_tiles.BOXES.value, gluon_tiles.WIDTH.value
    q_THP = q_THP if describable(q_THP) else q_THP.clone()
    pages = kv.view(-1, page, head_dim)
    programs = min(len(work.long_items) * num_kv_heads, num_multiprocessors(q_THP.device))
    gluon_tiles.attend_tiles[(programs,)](
        TensorDescriptor.from_tensor(q_THP, [gluon_tiles.ROWS.value // heads, heads, width], boxes),
        TensorDescriptor.from_tensor(pages, [1, page, width], boxes),
        sinks, out_THP, plan.query_starts_B1, plan.context_lens_B, plan.block_tables_BN, work.long_items, work.counts,
        plan.block_tables_BN.stride(0), scale * math.log2(math.e), window or 0, H=num_heads, G=num_kv_heads, P=head_dim, PAGE=page,
        HEADS=heads, HAS_SINKS=has_sinks, num_warps=gluon_tiles.WARPS, maxnreg=gluon_tiles.REGISTERS, **overlapped(),
    )  # fmt: skip


def may_take_roles(head_dim: int, group: int, page: int, dtype: torch.dtype) -> bool:
    """Whether `gluon_tiles` serves this shape: heads that fill rows, pages that its boxes hold. Gluon is compiled or nothing: the
    interpreter does not know it."""
    shape = head_dim in (64, 128) and group <= gluon_tiles.ROWS.value and _fits_boxes(page)
    return shape and dtype == torch.bfloat16 and not INTERPRETED.value


def _fits_boxes(page: int) -> bool:
    """Whole swizzles of eight rows, and whole pages in a tile."""
    return 8 <= page <= gluon_tiles.KEYS.value and page & (page - 1) == 0


def tile_queries(tile: Tile, group: int) -> int:
    """Whole queries of a tile; where warps have roles each takes as many rows as the next power of two."""
    return tile.rows // (triton.next_power_of_2(group) if tile.roles else group)


def _layout(kv: torch.Tensor, head_dim: int) -> tuple[bool, int]:
    """Whether blocks carry scales, and how many tokens one holds."""
    if kv.dim() == 5:
        return False, kv.shape[3]
    return True, kv.shape[3] // (head_dim + 4)


def _rows(x_THP: torch.Tensor) -> torch.Tensor:
    """`x` with everything but its first axis contiguous, as the kernels read it."""
    inner = x_THP.stride(2) == 1 and x_THP.stride(1) == x_THP.shape[2]
    return x_THP if inner else x_THP.contiguous()
