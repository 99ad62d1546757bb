"""Rotary position embedding: the angles of a step once, then a rotation of any head tensor."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation


def rope_tables(
    positions_T: torch.Tensor, inv_freq_F: torch.Tensor, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cos` and `sin` of position x frequency, times `magnitude` (YaRN, LongRoPE); float32 [T, rotary_dim / 2]."""
    out: tuple[torch.Tensor, torch.Tensor] = implementation("rope", positions_T).rope_tables(
        positions_T, inv_freq_F, magnitude
    )
    return out


def rope(x_THP: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate the first `2 F` channels of every head; the rest pass through.

    Channel i pairs with i + F, or 2i with 2i + 1 when `interleaved` (which also stays in place: the result keeps the
    checkpoint's channel order). Heads may be strided slices of a wider projection.
    """
    out: torch.Tensor = implementation("rope", x_THP).rope(x_THP, cos_TF, sin_TF, interleaved)
    return out


def norm_rope(
    q_THP: torch.Tensor,
    k_TGP: torch.Tensor,
    q_weight_P: torch.Tensor | None,
    k_weight_P: torch.Tensor | None,
    eps: float,
    cos_TF: torch.Tensor,
    sin_TF: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys rotated, each head behind its RMS norm where there are weights (both or neither)."""
    out: tuple[torch.Tensor, torch.Tensor] = implementation("rope", q_THP).norm_rope(
        q_THP, k_TGP, q_weight_P, k_weight_P, eps, cos_TF, sin_TF, interleaved
    )
    return out
