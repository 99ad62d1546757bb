"""Latent attention by the native kernels, over blocks in the layout of packed weights (`csrc/ops/kv.h`).

A block holds each token's latent and rotary key as one key of one head. Absorbed, values are the latent channels of it, turned
in the cache of the core that reads them; queries move into the latent space by `w_uk` and the result out of it by `w_uv`. Most
of a prompt has its keys and values lifted instead: `lifts` says which tokens, and why a token's form never depends on its chunk.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.linear.cpu import linear_heads
from ridgepoint.kernels.linear.native import heads_operator
from ridgepoint.kernels.mla_attention.lifts import lift_run, lifts_of
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.paged_attention.native import SUB_TOKENS, block_fields, int64, reading
from ridgepoint.kernels.paged_attention.native import allocate as allocate_blocks
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, heads, rows, submit


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
    run = None if plan.prompt_lens_B is None else lift_run(kv, w_uk, w_uv)
    if run is not None:
        assert isinstance(w_uk, Packed) and isinstance(w_uv, Packed)
        return _attend_in_both_forms(q_nope_THN, q_rope_THR, kv, w_uk, w_uv, plan, scale, window, run)
    q_THC, q_rope_THR = rows(absorb(q_nope_THN, w_uk)), rows(q_rope_THR)
    out_THC = empty(*q_THC.shape, dtype=q_THC.dtype)
    submit(_attention(q_THC, q_rope_THR, out_THC, reading(kv, plan, scale, window)))
    return linear_heads(out_THC, w_uv)


def _attend_in_both_forms(
    q_nope_THN: torch.Tensor, q_rope_THR: torch.Tensor, kv: torch.Tensor, w_uk: Packed, w_uv: Packed, plan: Any, scale: float,
    window: int | None, run: int,
) -> torch.Tensor:  # fmt: skip
    """Four operators, each of which picks its rows of the step; one that finds none costs nothing."""
    q_nope_THN, q_rope_THR = heads(q_nope_THN), rows(q_rope_THR)
    dtype = q_nope_THN.dtype
    lens_B = int64(plan.prompt_lens_B)
    cache = {**reading(kv, plan, scale, window), "prompt_lens": address(lens_B), "lift_tokens": run}
    num_tokens, num_heads = q_nope_THN.shape[:2]
    q_THC, out_THC = (empty(num_tokens, num_heads, w_uk.outputs, dtype=dtype) for _ in range(2))
    y_THV = empty(num_tokens, num_heads, w_uv.outputs, dtype=dtype)
    latents = _attention(q_THC, q_rope_THR, out_THC, cache)
    for x_THI, w, y_THO, between in ((q_nope_THN, w_uk, q_THC, latents), (out_THC, w_uv, y_THV, None)):
        linear = heads_operator(x_THI, w, y_THO)
        call(
            native.UnliftedLinearOp, num_tokens, keep=(w, latents), linear=linear, attention=ctypes.addressof(latents),
        )  # fmt: skip
        if between is not None:
            submit(between)
    lifts = lifts_of(w_uk, w_uv, dtype == torch.float32)
    call(
        native.LiftedAttentionOp, num_tokens, keep=(lifts,), latents=_attention(q_nope_THN, q_rope_THR, y_THV, cache, w_uk.outputs, lifted=1),
        w_uk=lifts.uk_HNC.ctypes.data, w_uv=lifts.uv_HVC.ctypes.data, nope_dim=w_uk.inputs, out_dim=w_uv.outputs,
        w_dtype=DTYPES[dtype],
    )  # fmt: skip
    return y_THV


def _attention(
    q_THX: torch.Tensor, q_rope_THR: torch.Tensor, y_THX: torch.Tensor, cache: dict[str, Any], latent_dim: int | None = None,
    lifted: int = 0,
) -> Any:  # fmt: skip
    latent_dim = latent_dim or q_THX.shape[2]
    rope_dim = q_rope_THR.shape[2]
    return native.op(
        native.AttentionOp, q_THX.shape[0], q=address(q_THX), q_rope=address(q_rope_THR), y=address(y_THX),
        heads=q_THX.shape[1], kv_heads=1, latent=1, lifted=lifted, key_dim=latent_dim + rope_dim, rope_dim=rope_dim, v_dim=latent_dim,
        q_stride=q_THX.stride(0), q_head_stride=q_THX.stride(1), q_rope_stride=q_rope_THR.stride(0), y_stride=y_THX.stride(0), dtype=DTYPES[q_THX.dtype], **cache,
    )  # fmt: skip
