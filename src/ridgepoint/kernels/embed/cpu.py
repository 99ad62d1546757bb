"""`embed` in torch ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    x_TD = F.embedding(ids_T, table_VD).to(dtype)
    return x_TD if scale == 1.0 else x_TD * scale
