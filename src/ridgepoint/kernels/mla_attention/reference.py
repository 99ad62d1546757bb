"""Definition of latent attention: keys and values of every cached token are lifted out of the latent, head by head."""

from __future__ import annotations

import torch

from ridgepoint.kernels.paged_attention.reference import Plan


def allocate(
    num_blocks: int, block_tokens: int, latent_dim: int, rope_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    return torch.zeros(num_blocks, block_tokens, latent_dim + rope_dim, dtype=dtype, device=device)


def write(kv: torch.Tensor, latent_TC: torch.Tensor, rope_key_TR: torch.Tensor, slots_T: torch.Tensor) -> None:
    for t, slot in enumerate(slots_T.tolist()):
        kv[slot // kv.shape[1], slot % kv.shape[1]] = torch.cat((latent_TC[t], rope_key_TR[t]))


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
    wide = torch.float64 if q_nope_THN.dtype == torch.float64 else torch.float32
    num_heads, latent_dim = w_uk_HNC.shape[0], w_uk_HNC.shape[2]
    out_THV = q_nope_THN.new_zeros(q_nope_THN.shape[0], num_heads, w_uv_HVC.shape[1])
    for b, context in enumerate(plan.context_lens):
        start, stop = plan.query_starts[b], plan.query_starts[b + 1]
        for t in range(start, stop):
            position = context - (stop - t)
            first = 0 if window is None else max(0, position - window + 1)
            cells = [divmod(j, plan.block_tokens) for j in range(first, position + 1)]
            tokens = torch.stack([kv[plan.block_tables[b][n], i] for n, i in cells]).to(wide)
            latent_SC, rope_key_SR = tokens[:, :latent_dim], tokens[:, latent_dim:]
            for h in range(num_heads):
                keys_SN = latent_SC @ w_uk_HNC[h].to(wide).T
                logits_S = (keys_SN @ q_nope_THN[t, h].to(wide) + rope_key_SR @ q_rope_THR[t, h].to(wide)) * scale
                values_SV = latent_SC @ w_uv_HVC[h].to(wide).T
                out_THV[t, h] = (logits_S.softmax(-1) @ values_SV).to(out_THV.dtype)
    return out_THV
