"""Rows that travelled close together, laid out at the stride of the place where a captured step looks for them."""

from __future__ import annotations

import torch

from ridgepoint.kernels.dispatch import implementation


def spread(packed_N: torch.Tensor, width_1: torch.Tensor, out_BW: torch.Tensor) -> None:
    """The first `width_1[0]` columns of each row of `out_BW` become the rows packed one after the other in `packed_N`; the other
    columns stay. The width is read where the tensors are, so that a recorded step may meet another one."""
    implementation("spread", packed_N).spread(packed_N, width_1, out_BW)
