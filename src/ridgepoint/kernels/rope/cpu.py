"""The rotation by the native kernels where they can serve, else in torch ops, both halves at once."""

from __future__ import annotations

import torch

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
