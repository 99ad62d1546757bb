"""The rotation by the native kernels."""

from __future__ import annotations

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, heads, rows


def rope(x_THP: torch.Tensor, cos_TF: torch.Tensor, sin_TF: torch.Tensor, interleaved: bool) -> torch.Tensor:
    x_THP, cos_TF, sin_TF = heads(x_THP), rows(cos_TF), rows(sin_TF)
    y_THP = empty(*x_THP.shape, dtype=x_THP.dtype)
    call(
        native.RopeOp, x_THP.shape[0], x=address(x_THP), y=address(y_THP), cos=address(cos_TF), sin=address(sin_TF),
        x_stride=x_THP.stride(0), x_head_stride=x_THP.stride(1), y_stride=y_THP.stride(0), table_stride=cos_TF.stride(0),
        heads=x_THP.shape[1], width=x_THP.shape[2], half=cos_TF.shape[1], dtype=DTYPES[x_THP.dtype], interleaved=interleaved,
    )  # fmt: skip
    return y_THP


def rope_tables(
    positions_T: torch.Tensor, inv_freq_F: torch.Tensor, magnitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (positions_T.shape[0], inv_freq_F.shape[0])
    cos_TF, sin_TF = empty(*shape, dtype=torch.float32), empty(*shape, dtype=torch.float32)
    call(
        native.RopeTablesOp, shape[0], positions=address(positions_T), inv_freq=address(inv_freq_F), cos=address(cos_TF),
        sin=address(sin_TF), half=shape[1], magnitude=magnitude,
    )  # fmt: skip
    return cos_TF, sin_TF
