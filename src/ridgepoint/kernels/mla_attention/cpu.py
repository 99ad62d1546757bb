"""Latent attention: by the native kernels over their own blocks, else in torch ops.

In torch ops decoding is absorbed: queries move into the latent space (`q @ w_uk`), attend to the latents themselves, and the result
moves out by `w_uv`; the cache is read once for all heads. A long segment lifts keys and values out instead when that
takes fewer operations, and then runs as ordinary attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.kernels.linear.cpu import linear_heads
from ridgepoint.kernels.mla_attention import native
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.paged_attention.cpu import DecodeBatch, Plan, Segment, refuse_codes
from ridgepoint.kernels.paged_attention.native import fits, is_native

READS_ON_HOST = True  # through the plan


def allocate(
    num_blocks: int, block_tokens: int, latent_dim: int, rope_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    width = latent_dim + rope_dim
    if latent_dim % 2 == 0 and fits(block_tokens, width, dtype, device):
        return native.allocate(num_blocks, block_tokens, latent_dim, rope_dim, dtype)
    refuse_codes(dtype, block_tokens, device)
    return torch.zeros(num_blocks, block_tokens, width, dtype=dtype, device=device)


def write(kv: torch.Tensor, latent_TC: torch.Tensor, rope_key_TR: torch.Tensor, slots_T: torch.Tensor) -> None:
    if is_native(kv):
        native.write(kv, latent_TC, rope_key_TR, slots_T)
        return
    rows = kv.view(-1, kv.shape[2])
    rows[slots_T, : latent_TC.shape[1]] = latent_TC
    rows[slots_T, latent_TC.shape[1] :] = rope_key_TR


def attend(
    q_nope_THN: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    w_uk_HNC: torch.Tensor | Packed,
    w_uv_HVC: torch.Tensor | Packed,
    plan: Plan,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    if is_native(kv):
        return native.attend(q_nope_THN, q_rope_THR, kv, w_uk_HNC, w_uv_HVC, plan, scale, window)
    latent_dim = kv.shape[2] - q_rope_THR.shape[2]
    batches, segments = plan.parts(window)
    out_THV = q_nope_THN.new_empty(q_nope_THN.shape[0], w_uv_HVC.shape[0], w_uv_HVC.shape[1])
    for batch in batches:
        q_BHC = _absorb(q_nope_THN[batch.rows_B], q_rope_THR[batch.rows_B], w_uk_HNC)
        out_THV[batch.rows_B] = linear_heads(_decode(q_BHC, kv, batch, latent_dim, scale), w_uv_HVC)
    for part in segments:
        q_nope, q_rope = q_nope_THN[part.start : part.stop], q_rope_THR[part.start : part.stop]
        keys_SC = kv[part.blocks_N].flatten(0, 1)[: part.num_keys]
        if (
            isinstance(w_uk_HNC, torch.Tensor)
            and isinstance(w_uv_HVC, torch.Tensor)
            and _lifting_is_cheaper(part, w_uk_HNC, w_uv_HVC, q_rope.shape[2])
        ):
            out = _lifted(q_nope, q_rope, keys_SC, w_uk_HNC, w_uv_HVC, part, scale)
        else:
            q_HQC = _absorb(q_nope, q_rope, w_uk_HNC).transpose(0, 1)
            o_QHC = _latent_attention(q_HQC, keys_SC, part, latent_dim, scale).transpose(0, 1)
            out = linear_heads(o_QHC, w_uv_HVC)
        out_THV[part.start : part.stop] = out
    return out_THV


def _absorb(q_nope_THN: torch.Tensor, q_rope_THR: torch.Tensor, w_uk: torch.Tensor | Packed) -> torch.Tensor:
    """Queries in the latent space beside their rotary part: [T, H, C + R]."""
    return torch.cat((native.absorb(q_nope_THN, w_uk), q_rope_THR), dim=-1)


def _decode(q_BHC: torch.Tensor, kv: torch.Tensor, batch: DecodeBatch, latent_dim: int, scale: float) -> torch.Tensor:
    keys_BSC = kv.index_select(0, batch.blocks_BN.flatten()).view(len(batch.rows_B), -1, kv.shape[2])
    logits_BHS = torch.bmm(q_BHC, keys_BSC.transpose(1, 2)).float() * scale
    if batch.mask_B1S is not None:
        logits_BHS += batch.mask_B1S[:, 0]
    return torch.bmm(logits_BHS.softmax(-1).to(keys_BSC.dtype), keys_BSC[..., :latent_dim])


def _latent_attention(
    q_HQC: torch.Tensor, keys_SC: torch.Tensor, part: Segment, latent_dim: int, scale: float
) -> torch.Tensor:
    logits_HQS = (q_HQC @ keys_SC.T).float() * scale
    if part.mask_QS is None:
        hidden = torch.ones(logits_HQS.shape[1:], dtype=torch.bool, device=q_HQC.device).triu(1)
        logits_HQS = logits_HQS.masked_fill(hidden, float("-inf"))
    else:
        logits_HQS += part.mask_QS
    return logits_HQS.softmax(-1).to(keys_SC.dtype) @ keys_SC[:, :latent_dim]


def _lifting_is_cheaper(part: Segment, w_uk_HNC: torch.Tensor, w_uv_HVC: torch.Tensor, rope_dim: int) -> bool:
    """Multiply-adds per head: lifting pays `keys C (N + V)` once and attends in N + R + V; absorbing pays the same per
    query and attends in 2 C + R."""
    queries, keys = part.stop - part.start, part.num_keys
    latent, lift = w_uk_HNC.shape[2], w_uk_HNC.shape[2] * (w_uk_HNC.shape[1] + w_uv_HVC.shape[1])
    lifted = keys * lift + queries * keys * (w_uk_HNC.shape[1] + rope_dim + w_uv_HVC.shape[1])
    absorbed = queries * lift + queries * keys * (2 * latent + rope_dim)
    return lifted < absorbed


def _lifted(
    q_nope_QHN: torch.Tensor,
    q_rope_QHR: torch.Tensor,
    keys_SC: torch.Tensor,
    w_uk_HNC: torch.Tensor,
    w_uv_HVC: torch.Tensor,
    part: Segment,
    scale: float,
) -> torch.Tensor:
    latent_SC, rope_key_SR = keys_SC.split((w_uk_HNC.shape[2], q_rope_QHR.shape[2]), dim=-1)
    dtype, heads = keys_SC.dtype, w_uk_HNC.shape[0]
    k_HSN = latent_SC @ w_uk_HNC.to(dtype).transpose(1, 2)
    v_HSV = latent_SC @ w_uv_HVC.to(dtype).transpose(1, 2)
    k_HSP = torch.cat((k_HSN, rope_key_SR.expand(heads, -1, -1)), dim=-1)
    q_HQP = torch.cat((q_nope_QHN, q_rope_QHR), dim=-1).transpose(0, 1)
    missing = k_HSP.shape[-1] - v_HSV.shape[-1]
    if missing > 0:  # the fused op wants one width; zero channels of V stay zero and are cut off again
        v_HSV = F.pad(v_HSV, (0, missing))
    mask = None if part.mask_QS is None else part.mask_QS.to(dtype)
    o_HQV = F.scaled_dot_product_attention(
        q_HQP[None], k_HSP[None], v_HSV[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )[0]
    return o_HQV[..., : w_uv_HVC.shape[1]].transpose(0, 1)
