"""Linears with packed weights as the tuner sees them: the height of blocks and one tile, at a number of rows. Dense ones are
torch's BLAS and have no choice of ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm.candidates import demand, heights, tiles
from ridgepoint.kernels.linear.triton import linear
from ridgepoint.kernels.tuning import LinearTiles
from ridgepoint.kernels.tuning.physics import Demand, processor_of, worth_timing
from ridgepoint.kernels.tuning.tuner import MOST, Call, Problem


def linear_problem(weights: Sequence[DeviceWeight], rows: int, up_to: float) -> Problem:
    """Weights of one shape and format."""
    w = weights[0]
    estimate: LinearTiles = tuning.choose("linear", w.product, rows, (w.inputs, w.outputs), w.device)

    def demand_of(config: LinearTiles) -> Demand:
        return demand(
            config.first,
            w.product,
            config.block_m,
            matrices=1,
            rows=rows,
            parts=1,
            part_rows=w.outputs,
            inputs=w.inputs,
            unit=1,
        )

    def candidates(best: object) -> list[LinearTiles]:
        assert isinstance(best, LinearTiles)
        found = [
            LinearTiles(block_m=m, first=tile)
            for m in dict.fromkeys(m for m, _ in heights(rows))
            for tile in tiles(w.product, rows, m, 1)
        ]
        return worth_timing(found, demand_of, processor_of(w.device), MOST, best)

    return Problem(
        op="linear", kind=w.product, shape=(w.inputs, w.outputs), size=rows, up_to=up_to, estimate=estimate, rounds=(candidates,),
        calls=lambda: _calls(weights, rows),
    )  # fmt: skip


def _calls(weights: Sequence[DeviceWeight], rows: int) -> list[Call]:
    generator = torch.Generator(device=weights[0].device).manual_seed(0)
    return [
        partial(linear, torch.randn(rows, w.inputs, device=w.device, generator=generator).bfloat16(), w) for w in weights
    ]  # fmt: skip
