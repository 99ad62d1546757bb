"""`add_shared` by the native kernels."""

from __future__ import annotations

import torch

from ridgepoint.kernels import native
from ridgepoint.kernels.tensor_call import DTYPES, address, call, empty, rows


def add_shared(routed_TD: torch.Tensor, shared_TD: torch.Tensor, gate_logit_T1: torch.Tensor | None) -> torch.Tensor:
    routed_TD, shared_TD = rows(routed_TD), rows(shared_TD)
    y_TD = empty(*routed_TD.shape, dtype=routed_TD.dtype)
    call(
        native.AddSharedOp, y_TD.shape[0], routed=address(routed_TD), shared=address(shared_TD),
        gate=address(gate_logit_T1), y=address(y_TD), width=y_TD.shape[1], routed_stride=routed_TD.stride(0),
        shared_stride=shared_TD.stride(0), gate_stride=0 if gate_logit_T1 is None else gate_logit_T1.stride(0),
        y_stride=y_TD.stride(0), dtype=DTYPES[y_TD.dtype],
    )  # fmt: skip
    return y_TD
