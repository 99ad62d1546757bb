"""Multi-head latent attention over a paged cache of latents, and the layout of its blocks.

The cache holds one latent (C) and one rotary key (R) per token for all heads. Plans are those of `paged_attention`:
`prepare` there, `attend` here. Whether keys are lifted out of the latent or queries moved into it is the path's choice.
"""

from __future__ import annotations

from typing import Any

import torch

from ridgepoint.kernels.dispatch import implementation


def allocate(
    num_blocks: int, block_tokens: int, latent_dim: int, rope_dim: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """One layer's blocks; the first axis counts blocks and each block is contiguous."""
    probe = torch.empty(0, device=device)
    out: torch.Tensor = implementation("mla_attention", probe).allocate(
        num_blocks, block_tokens, latent_dim, rope_dim, dtype, device
    )
    return out


def masks_unwritten(kv: torch.Tensor) -> bool:
    """As in `paged_attention`."""
    return getattr(implementation("mla_attention", kv), "MASKS_UNWRITTEN", False)


def write(kv: torch.Tensor, latent_TC: torch.Tensor, rope_key_TR: torch.Tensor, slots_T: torch.Tensor) -> None:
    """Store the latents and rotary keys of this step's tokens, in place."""
    implementation("mla_attention", latent_TC).write(kv, latent_TC, rope_key_TR, slots_T)


def attend(
    q_nope_THN: torch.Tensor,
    q_rope_THR: torch.Tensor,
    kv: torch.Tensor,
    w_uk_HNC: torch.Tensor | Any,
    w_uv_HVC: torch.Tensor | Any,
    plan: Any,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention with keys `(w_uk @ latent, rotary key)` and values `w_uv @ latent`: o_THV."""
    out: torch.Tensor = implementation("mla_attention", q_nope_THN).attend(
        q_nope_THN, q_rope_THR, kv, w_uk_HNC, w_uv_HVC, plan, scale, window
    )
    return out
