"""Embedding lookup by the native kernels."""

from __future__ import annotations

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    y_TD = empty(ids_T.shape[0], table_VD.shape[1], dtype=dtype)
    call(
        native.EmbedOp, ids_T.shape[0], ids=address(ids_T), table=address(table_VD), y=address(y_TD),
        width=table_VD.shape[1], vocab=table_VD.shape[0], y_stride=y_TD.stride(0), table_dtype=DTYPES[table_VD.dtype],
        y_dtype=DTYPES[dtype], scale=scale,
    )  # fmt: skip
    return y_TD
