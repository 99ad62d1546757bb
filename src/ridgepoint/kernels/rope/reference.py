"""Definition of the rotation: each channel pair as a complex number times exp(i position frequency)."""

from __future__ import annotations

import torch

from ridgepoint.kernels.norm.reference import rms_norm


def rope_tables(
    positions_T: torch.Tensor, inv_freq_F: torch.Tensor, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    angle_TF = positions_T.to(inv_freq_F.dtype)[:, None] * inv_freq_F[None, :]
    return angle_TF.cos() * magnitude, angle_TF.sin() * magnitude


def rope(x_THP: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = cos_TF.shape[1]
    out = x_THP.to(cos_TF.dtype).clone()
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        a, b = out[..., first].clone(), out[..., second].clone()
        cos, sin = cos_TF[:, i, None], sin_TF[:, i, None]
        out[..., first] = a * cos - b * sin
        out[..., second] = b * cos + a * sin
    return out.to(x_THP.dtype)


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
    if q_weight_P is not None and k_weight_P is not None:
        q_THP, k_TGP = rms_norm(q_THP, q_weight_P, eps), rms_norm(k_TGP, k_weight_P, eps)
    return rope(q_THP, cos_TF, sin_TF, interleaved), rope(k_TGP, cos_TF, sin_TF, interleaved)
