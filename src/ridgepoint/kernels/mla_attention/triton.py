"""Latent attention on GPUs. Queries are absorbed: moved into the latent space (`q @ w_uk`), attended there, and moved out by
`w_uv`, so that the cache is read as it lies, and once for all heads of a tile. Prompts for which that is more work have their
keys lifted instead (`triton_lifted`).

A block is `[token, latent then rotary key]`; in one-byte types (fp8 e4m3, int8) the tokens are followed by two float32 scales
each. Plans are those of `paged_attention`. Nothing here reads a number from the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.mla_attention import gluon_seesaw, gluon_splits
from ridgepoint.kernels.mla_attention import triton_kernels as kernels
from ridgepoint.kernels.mla_attention.triton_lifted import attend_lifted, lift_of
from ridgepoint.kernels.paged_attention import triton_kernels as paged_kernels
from ridgepoint.kernels.paged_attention.triton import COMBINE_CHUNK, KINDS, LARGEST, PLAIN, partial_dtype
from ridgepoint.kernels.paged_attention.triton_plan import MAX_SPLITS, Cut, Lift, Plan
from ridgepoint.kernels.triton_call import INTERPRETED, num_multiprocessors, overlapped
from ridgepoint.kernels.tuning import AttentionTile as Tile
from ridgepoint.kernels.tuning import choose

MASKS_UNWRITTEN = True  # as in `paged_attention`
SCALE_BYTES = 8  # of a token in one-byte blocks


def split_tile(num_heads: int, latent_dim: int, bytes_per_channel: int, is_coded: bool) -> Tile:
    """For one query, whose heads are the rows: a warp group's 64 when there are heads enough. A row's result fills as many
    registers as it has latent channels, which bounds everything else; codes are widened in registers too."""
    if bytes_per_channel == 4 or latent_dim > 512:
        return Tile(16, 16, warps=4, stages=1)
    rows = min(32 if is_coded else 64, max(16, triton.next_power_of_2(num_heads)))
    if rows == 16:
        return Tile(16, 32, warps=8, stages=5) if is_coded else Tile(16, 32, warps=4, stages=5, per_sm=2)
    if is_coded:
        return Tile(rows, 32, warps=8, stages=5)
    return Tile(rows, 64, warps=8, stages=5 if rows == 32 else 3)


def query_tile(latent_dim: int, bytes_per_channel: int, is_coded: bool) -> Tile:
    """For several queries with all their heads."""
    if bytes_per_channel == 4 or latent_dim > 512:
        return Tile(16, 16, warps=4, stages=1)
    return Tile(16, 32, warps=8, stages=5) if is_coded else Tile(64, 64, warps=8, stages=3)


def allocate(
    num_blocks: int, block_tokens: int, latent_dim: int, rope_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    width = latent_dim + rope_dim
    if dtype in PLAIN:
        return torch.zeros(num_blocks, block_tokens, width, dtype=dtype, device=device)
    if dtype not in LARGEST:
        raise ConfigError(f"latents cannot be kept as {dtype}; allowed: {', '.join(map(str, (*PLAIN, *LARGEST)))}")
    if block_tokens * width % 4:
        raise ConfigError(f"one-byte blocks of {block_tokens} tokens x {width} channels leave their scales unaligned")
    block_bytes = block_tokens * (width + SCALE_BYTES)
    return torch.zeros(num_blocks, block_bytes, dtype=torch.uint8, device=device).view(dtype)


def write(kv: torch.Tensor, latent_TC: torch.Tensor, rope_key_TR: torch.Tensor, slots_T: torch.Tensor) -> None:
    latent_TC, rope_key_TR = _contiguous_rows(latent_TC), _contiguous_rows(rope_key_TR)
    num_tokens, latent_dim = latent_TC.shape
    rope_dim = rope_key_TR.shape[1]
    if num_tokens == 0:
        return
    scaled, page = _layout(kv, latent_dim + rope_dim)
    kernels.write_latents[(num_tokens, 2)](
        kv, kv.view(torch.float32) if scaled else kv, latent_TC, rope_key_TR, slots_T, latent_TC.stride(0),
        rope_key_TR.stride(0), C=latent_dim, BLOCK_C=triton.next_power_of_2(latent_dim), R=rope_dim,
        BLOCK_R=triton.next_power_of_2(rope_dim), PAGE=page, SCALED=scaled, LARGEST=LARGEST.get(kv.dtype, 1.0),
        INTEGER=kv.dtype == torch.int8, num_warps=2, **overlapped(),
    )  # fmt: skip


def attend(
    q_nope_THN: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    w_uk_HNC: torch.Tensor,
    w_uv_HVC: torch.Tensor,
    plan: Plan,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    dtype, latent_dim = q_nope_THN.dtype, w_uk_HNC.shape[2]
    lift = lift_of(latent_dim, w_uk_HNC.shape[1], w_uv_HVC.shape[1])
    q_rope_THR = q_rope_THR if q_rope_THR.stride(2) == 1 else q_rope_THR.contiguous()
    if lift is not None and plan.has_only_lifted(lift, window):
        out_THV = q_nope_THN.new_empty(*q_nope_THN.shape[:2], w_uv_HVC.shape[1])
    else:
        q_HTC = torch.bmm(q_nope_THN.transpose(0, 1), w_uk_HNC.to(dtype))
        o_THC = _attend_latents(q_HTC, q_rope_THR, kv, plan, lift, scale, window)
        out_THV = torch.bmm(o_THC.transpose(0, 1), w_uv_HVC.to(dtype).transpose(1, 2)).transpose(0, 1)
    if lift is not None and plan.num_seqs < len(q_nope_THN):  # else nothing is long
        q_nope_THN = q_nope_THN if q_nope_THN.stride(2) == 1 else q_nope_THN.contiguous()
        scaled, page = _layout(kv, latent_dim + q_rope_THR.shape[2])
        attend_lifted(q_nope_THN, q_rope_THR, kv, scaled, page, w_uk_HNC, w_uv_HVC, plan, lift, scale, window, out_THV)
    return out_THV


def _attend_latents(
    q_HTC: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    plan: Plan,
    lift: Lift | None,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Results in the latent space; rows of lifted sequences are left as they are."""
    num_heads, num_tokens, latent_dim = q_HTC.shape
    rope_dim = q_rope_THR.shape[2]
    out_THC = torch.empty(num_tokens, num_heads, latent_dim, dtype=q_HTC.dtype, device=q_HTC.device)
    if num_tokens == 0 or plan.num_seqs == 0:
        return out_THC.zero_()
    if q_HTC.numel() >= 1 << 31:  # places of queries are 32 bits wide: in 64 the kernels would spill
        raise ConfigError(
            f"{num_tokens} tokens of {num_heads} heads are beyond a step of latent attention; allowed: "
            f"{((1 << 31) - 1) // (num_heads * latent_dim)}",
            hint="lower max_step_tokens",
        )
    scaled, page = _layout(kv, latent_dim + rope_dim)
    shape, kind = (num_heads, latent_dim, rope_dim, window or 0), KINDS[kv.dtype]
    short: Tile = choose(
        "mla_decode", kind, plan.num_seqs, shape, q_HTC.device,
        lambda: split_tile(num_heads, latent_dim, q_HTC.element_size(), scaled),
    )  # fmt: skip
    long: Tile = choose(
        "mla_prompt", kind, num_tokens, shape, q_HTC.device,
        lambda: query_tile(latent_dim, q_HTC.element_size(), scaled),
    )  # fmt: skip
    if short.roles:
        q_rope_THR = _aligned(q_rope_THR)
    head_tiles = triton.cdiv(num_heads, short.rows)
    programs = short.per_sm * num_multiprocessors(q_HTC.device)
    # A partial result of all heads is as many bytes as a few hundred latents: no more splits than keep the device busy.
    cut = Cut(window, 1, max(1, long.rows // num_heads), parts=max(1, programs // head_tiles), lift=lift)
    work = plan.work(cut, num_tokens)
    facts: dict[str, Any] = {
        "H": num_heads, "PAGE": page, "C": latent_dim, "BLOCK_C": max(16, triton.next_power_of_2(latent_dim)),
        "R": rope_dim, "BLOCK_R": max(16, triton.next_power_of_2(rope_dim)), "SCALED": scaled,
    }  # fmt: skip
    read = (q_HTC, q_rope_THR, kv, kv.view(torch.float32) if scaled else kv)
    sequences = (plan.query_starts_B1, plan.context_lens_B, plan.block_tables_BN)
    numbers = (
        q_HTC.stride(0), q_HTC.stride(1), q_rope_THR.stride(0), q_rope_THR.stride(1), plan.block_tables_BN.stride(0),
        scale * math.log2(math.e), window or 0,
    )  # fmt: skip
    if len(work.long_items):
        tiles = triton.cdiv(cut.tile_queries * num_heads, long.rows)
        kernels.attend_tiles[(len(work.long_items) * tiles,)](
            *read, out_THC, *sequences, work.long_items, work.counts, *numbers, **facts, **_tiling(long),
            TILE=cut.tile_queries,
        )  # fmt: skip
    if plan.has_only_long(cut):
        return out_THC
    partial_rows = len(work.short_items) * num_heads
    acc = torch.empty(partial_rows, latent_dim, dtype=partial_dtype(q_HTC.dtype), device=q_HTC.device)
    max_, sum_ = torch.empty(2, partial_rows, dtype=torch.float32, device=q_HTC.device)
    split = (out_THC, acc, max_, sum_, *sequences, work.short_items, work.split_tokens_B, work.counts, *numbers)
    if short.early or short.roles:
        gluon = gluon_seesaw if short.roles else gluon_splits
        gluon.attend_splits[(programs,)](
            *read[:3], *split, H=num_heads, PAGE=page, C=latent_dim, R=rope_dim, num_warps=gluon.WARPS, **overlapped(),
        )  # fmt: skip
    else:
        kernels.attend_splits[(programs,)](*read, *split, **facts, **_tiling(short), **overlapped())
    # To the combination, latents are one key-value head that all heads share.
    paged_kernels.combine_splits[(plan.num_seqs, num_heads)](
        acc, max_, sum_, out_THC, *sequences[:2], work.first_item_B, work.split_tokens_B, num_tokens, plan.num_seqs, window or 0, 1,
        H=num_heads, G=1, P=latent_dim, BLOCK_P=facts["BLOCK_C"], MAX_SPLITS=MAX_SPLITS, ROWS=num_heads, CHUNK=COMBINE_CHUNK,
        WHOLE=False, num_warps=4, **overlapped(),
    )  # fmt: skip
    return out_THC


def may_use_gluon(num_heads: int, latent_dim: int, rope_dim: int, dtype: torch.dtype) -> bool:
    """Whether `gluon_splits` and `gluon_seesaw` serve this shape: whole tiles of heads, rows that their layouts divide, and room for
    two tiles. Gluon is compiled or nothing: the interpreter does not know it."""
    shape = num_heads % gluon_splits.HEADS.value == 0 and (latent_dim, rope_dim) == (512, 64)
    return shape and dtype == torch.bfloat16 and not INTERPRETED.value


def _tiling(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.rows, "BLOCK_N": tile.keys, "STAGES": tile.stages, "num_warps": tile.warps}


def _layout(kv: torch.Tensor, width: int) -> tuple[bool, int]:
    """Whether blocks carry scales, and how many tokens one holds."""
    if kv.dim() == 3:
        return False, kv.shape[1]
    return True, kv.shape[1] // (width + SCALE_BYTES)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """So that the compiler knows where 16 bytes can be copied at once: it asks for multiples of 16 elements."""
    known = all(stride % 16 == 0 for stride in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    return x if known else x.clone(memory_format=torch.contiguous_format)


def _contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
