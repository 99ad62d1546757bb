"""The rotation by the native kernels where they can serve, else in torch ops, both halves at once."""

from __future__ import annotations

import torch

from ridgepoint.kernels.norm.cpu import rms_norm
from ridgepoint.kernels.rope import native, reference
from ridgepoint.kernels.tensor_call import takes


def rope_tables(
    positions_T: torch.Tensor, inv_freq_F: torch.Tensor, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if positions_T.dtype == torch.int64 and takes(inv_freq_F):
        return native.rope_tables(positions_T, inv_freq_F, magnitude)
    return reference.rope_tables(positions_T, inv_freq_F, magnitude)


def rope(x_THP: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if takes(x_THP, cos_TF, sin_TF):
        return native.rope(x_THP, cos_TF, sin_TF, interleaved)
    width = 2 * cos_TF.shape[1]
    turned = x_THP[..., :width]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    cos, sin = cos_TF[:, None], sin_TF[:, None]
    first, second = a * cos - b * sin, b * cos + a * sin  # float32: the tables are
    pairs = torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)
    pairs = pairs.to(x_THP.dtype)
    return pairs if width == x_THP.shape[-1] else torch.cat((pairs, x_THP[..., width:]), dim=-1)


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
