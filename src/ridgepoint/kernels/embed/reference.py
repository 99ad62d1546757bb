"""Definition of `embed`."""

from __future__ import annotations

import torch


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    rows = [table_VD[int(token)] for token in ids_T]
    out = torch.stack(rows) if rows else table_VD[:0]
    return (out * scale).to(dtype)
