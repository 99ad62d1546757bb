"""Token ids to rows of the embedding table, times the model's embedding scale."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation


def embed(ids_T: torch.Tensor, table_VD: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """`table[ids] * scale` as `dtype`, the type the residual stream has from here on."""
    out: torch.Tensor = implementation("embed", ids_T).embed(ids_T, table_VD, scale, dtype)
    return out
