"""Routed experts as the tuner sees them: the heights of blocks and both tiles of a layer, at a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ridgepoint.catalog.spec import Activation
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm.candidates import BY_ROLES as TILE_BY_ROLES
from ridgepoint.kernels.gemm.candidates import demand, heights, may_take_roles, tiles
from ridgepoint.kernels.gemm.few_pairs import ROOM
from ridgepoint.kernels.gemm.gluon_blocks import ROWS
from ridgepoint.kernels.gemm.launch import Weight
from ridgepoint.kernels.moe_experts.triton import moe_experts
from ridgepoint.kernels.tuning import ExpertTiles
from ridgepoint.kernels.tuning.physics import ADDRESSES, Demand, processor_of, worth_timing
from ridgepoint.kernels.tuning.tuner import MOST, Call, Problem

BY_ROLES = ExpertTiles(block_m=3 * ROWS.value, unit=ROWS.value, first=TILE_BY_ROLES, second=TILE_BY_ROLES)
FEW_ADDRESSES = 40  # registers more, where a product finds its rows itself (as compiled for sm_90)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertLayer:
    """Weights of one layer. Layers that are tuned together are alike in everything but their numbers."""

    gate_up: Weight
    down: Weight
    activation: Activation
    top_k: int
    bias_gate_up: torch.Tensor | None = None
    bias_down: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        return self.gate_up.product if isinstance(self.gate_up, DeviceWeight) else "bf16"


def expert_problem(layers: Sequence[ExpertLayer], tokens: int, up_to_tokens: float) -> Problem:
    """The layers' choice at a number of tokens; it holds up to the rows that the average expert then has."""
    first = layers[0]
    num_experts, outputs, inputs = first.gate_up.shape
    each = first.top_k / num_experts
    rows = tokens * each
    device = first.gate_up.device
    touched = num_experts * (1 - (1 - each) ** tokens)
    num_pairs = tokens * first.top_k
    each_rows = num_pairs / touched
    # With biases those that multiply by roles would spill.
    by_roles = first.bias_gate_up is None and may_take_roles(first.kind, each_rows, inputs, outputs // 2)
    space = _Space(first.kind, touched, each_rows, outputs // 2, inputs, device, num_pairs <= ROOM, by_roles)
    estimate: ExpertTiles = tuning.choose("experts", first.kind, rows, (inputs, outputs), device)
    return Problem(
        op="experts", kind=first.kind, shape=(inputs, outputs), size=rows, up_to=up_to_tokens * each, estimate=estimate,
        rounds=(space.first_tiles, space.second_tiles), calls=lambda: _calls(layers, tokens),
    )  # fmt: skip


@dataclass(frozen=True)
class _Space:
    """`rows` are those of an expert that has any."""

    kind: str
    touched: float
    rows: float
    width: int
    d_model: int
    device: torch.device
    few: bool  # pairs: products find their rows themselves
    by_roles: bool  # may be tried

    @property
    def addresses(self) -> int:
        return ADDRESSES + (FEW_ADDRESSES if self.few else 0)

    def first_tiles(self, best: object) -> list[ExpertTiles]:
        """Heights with the tiles of gate and up. At another height than the best's, down has the tile that is best by estimate."""
        assert isinstance(best, ExpertTiles)
        found = []
        for m, unit in heights(self.rows):
            at_m = replace(best, block_m=m, unit=unit if unit < m else None)
            if m != best.block_m:
                at_m = self._by_estimate(self._seconds_of(at_m), 1)[0]
            found += [replace(at_m, first=tile) for tile in tiles(self.kind, self.rows, m, 2)]
        kept = worth_timing(found, self._first_demand, processor_of(self.device), MOST, best)
        # What warps with roles gain the estimate does not know: they are tried in any case.
        return list(dict.fromkeys([best, *([BY_ROLES] if self.by_roles else []), *kept]))[:MOST]

    def second_tiles(self, best: object) -> list[ExpertTiles]:
        assert isinstance(best, ExpertTiles)
        if best.by_roles:
            return [best]
        return [best, *(c for c in self._by_estimate(self._seconds_of(best), MOST - 2) if c != best)]

    def _seconds_of(self, best: ExpertTiles) -> list[ExpertTiles]:
        return [replace(best, second=tile) for tile in tiles(self.kind, self.rows, best.block_m, 1)]

    def _by_estimate(self, found: list[ExpertTiles], most: int) -> list[ExpertTiles]:
        return worth_timing(found, self._second_demand, processor_of(self.device), most)

    def _first_demand(self, config: ExpertTiles) -> Demand:
        return demand(
            config.first, self.kind, config.block_m, matrices=self.touched, rows=self.rows, parts=2, part_rows=self.width,
            inputs=self.d_model, unit=config.unit, addresses=self.addresses,
        )  # fmt: skip

    def _second_demand(self, config: ExpertTiles) -> Demand:
        return demand(
            config.second, self.kind, config.block_m, matrices=self.touched, rows=self.rows, parts=1,
            part_rows=self.d_model, inputs=self.width, unit=config.unit, addresses=self.addresses,
        )  # fmt: skip


def _calls(layers: Sequence[ExpertLayer], tokens: int) -> list[Call]:
    """Each layer with tokens and choices of its own."""
    device = layers[0].gate_up.device
    generator = torch.Generator(device=device).manual_seed(0)
    calls: list[Call] = []
    for layer in layers:
        num_experts, _, inputs = layer.gate_up.shape
        x_TD = torch.randn(tokens, inputs, device=device, generator=generator).bfloat16()
        ids_TK = torch.rand(tokens, num_experts, device=device, generator=generator).topk(layer.top_k).indices
        weights_TK = torch.full(ids_TK.shape, 1 / layer.top_k, device=device)
        calls.append(
            partial(moe_experts, x_TD, weights_TK, ids_TK, layer.gate_up, layer.down, layer.activation, layer.bias_gate_up,
                    layer.bias_down)
        )  # fmt: skip
    return calls
