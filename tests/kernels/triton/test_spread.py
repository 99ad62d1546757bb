"""Spreading of packed rows: the definition, torch's and Triton's."""

from __future__ import annotations

import pytest
import torch
from products import DEVICE

from ridgepoint.kernels.dispatch import forced
from ridgepoint.kernels.spread import spread


@pytest.mark.parametrize("path", ["cpu", "triton"])
@pytest.mark.parametrize("width", [1, 3, 300, 700])
def test_rows_are_laid_out_and_the_rest_stays(path: str, width: int) -> None:
    packed = torch.arange(4 * 700, device=DEVICE)[: 4 * width]
    out, want = (torch.full((4, 700), -1, device=DEVICE) for _ in range(2))
    with forced(path):
        spread(packed, torch.tensor([width], device=DEVICE), out)
    with forced("reference"):
        spread(packed, torch.tensor([width], device=DEVICE), want)
    assert torch.equal(out, want)
    assert bool((out[:, width:] == -1).all())
