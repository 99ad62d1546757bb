"""`embed` by the native kernels where they can serve, else in torch ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ridgepoint.kernels.embed import native
from ridgepoint.kernels.tensor_call import DTYPES, takes


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    if ids_T.dtype == torch.int64 and dtype in DTYPES and table_VD.is_contiguous() and takes(table_VD):
        return native.embed(ids_T, table_VD, scale, dtype)
    x_TD = F.embedding(ids_T, table_VD).to(dtype)
    return x_TD if scale == 1.0 else x_TD * scale
