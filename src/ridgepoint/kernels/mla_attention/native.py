"""Latent attention by the native kernels: always absorbed, over blocks in the layout of packed weights (`csrc/ops/kv.h`).

A block holds each token's latent and rotary key as one key of one head; values are the latent channels of it, turned in
the cache of the core that reads them. Queries move into the latent space by `w_uk` and the result out of it by `w_uv`.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.linear.cpu import linear_heads
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.paged_attention.native import SUB_TOKENS, block_fields, int64, reading
from ridgepoint.kernels.paged_attention.native import allocate as allocate_blocks
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, rows


def allocate(num_blocks: int, block_tokens: int, latent_dim: int, rope_dim: int, dtype: torch.dtype) -> torch.Tensor:
    return allocate_blocks(num_blocks, block_tokens, 1, latent_dim + rope_dim, 0, dtype)


def write(kv: torch.Tensor, latent_TC: torch.Tensor, rope_key_TR: torch.Tensor, slots_T: torch.Tensor) -> None:
    latent_TC, rope_key_TR, slots_T = rows(latent_TC), rows(rope_key_TR), int64(slots_T)
    latent_dim = latent_TC.shape[1]
    call(
        native.KvWriteOp, latent_TC.shape[0], k=address(latent_TC), v=address(rope_key_TR), slots=address(slots_T),
        cache=address(kv), num_slots=kv.shape[0] * kv.shape[2] * SUB_TOKENS, heads=1, latent=1,
        key_dim=latent_dim + rope_key_TR.shape[1], v_dim=latent_dim, k_stride=latent_TC.stride(0),
        v_stride=rope_key_TR.stride(0), dtype=DTYPES[latent_TC.dtype], **block_fields(kv),
    )  # fmt: skip


def absorb(q_nope_THN: torch.Tensor, w_uk: torch.Tensor | Packed) -> torch.Tensor:
    """Queries in the latent space: q_THC. A packed `w_uk` holds `[C, N]` of each head, the matrix that does this."""
    return linear_heads(q_nope_THN, w_uk if isinstance(w_uk, Packed) else w_uk.transpose(1, 2))


def attend(
    q_nope_THN: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    w_uk: torch.Tensor | Packed,
    w_uv: torch.Tensor | Packed,
    plan: Any,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    q_THC, q_rope_THR = rows(absorb(q_nope_THN, w_uk)), rows(q_rope_THR)
    num_heads, latent_dim = q_THC.shape[1:]
    out_THC = empty(*q_THC.shape, dtype=q_THC.dtype)
    call(
        native.AttentionOp, q_THC.shape[0], q=address(q_THC), q_rope=address(q_rope_THR), y=address(out_THC),
        heads=num_heads, kv_heads=1, latent=1, key_dim=latent_dim + q_rope_THR.shape[2], v_dim=latent_dim,
        q_stride=q_THC.stride(0), q_rope_stride=q_rope_THR.stride(0), y_stride=out_THC.stride(0),
        dtype=DTYPES[q_THC.dtype], **reading(kv, plan, scale, window),
    )  # fmt: skip
    return linear_heads(out_THC, w_uv)
