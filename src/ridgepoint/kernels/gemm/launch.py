"""Starts the product kernels: descriptors, grids and the choice that alignment forces. Knows tiles, not operators.

Tiles of tokens go through the copy engine, which wants 16-byte aligned rows; a tensor without them (odd widths, in tests and
toy models) takes the other kernel with plain pointers, at the same BLOCK_M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm.dequantise import words_per_block
from ridgepoint.kernels.gemm.token_tiles import token_tiles
from ridgepoint.kernels.gemm.weight_tiles import weight_tiles
from ridgepoint.kernels.moe_experts.groups import Groups
from ridgepoint.kernels.triton_call import describable, describe, num_multiprocessors
from ridgepoint.kernels.tuning import Tile

Weight = torch.Tensor | DeviceWeight


@dataclass(frozen=True, kw_only=True)
class Product:
    """`act(w @ x + bias)` for rows of `x`. `activation` makes `w` a gated projection: gate rows, then up rows.

    With `groups`, `w` is one matrix per expert and rows are those of the groups, which with `top_k` are first gathered from
    the tokens in `x` (a token has `top_k` rows).
    """

    x: torch.Tensor
    w: Weight
    bias: torch.Tensor | None
    tile: Tile
    block_m: int
    out_dtype: torch.dtype
    groups: Groups | None = None
    top_k: int | None = None
    activation: Activation | None = None

    @property
    def parts(self) -> int:
        return 1 if self.activation is None else 2

    @property
    def part_rows(self) -> int:
        return self.w.shape[-2] // self.parts

    @property
    def inputs(self) -> int:
        return self.w.shape[-1]

    def run(self) -> torch.Tensor:
        rows = self.x.shape[0] if self.groups is None else self.groups.capacity_rows
        x = self.x if self.x.stride(-1) == 1 else self.x.contiguous()
        out = torch.empty(rows, self.part_rows, dtype=self.out_dtype, device=x.device)
        if self.tile.kernel == "tokens" and isinstance(self.w, torch.Tensor) and self._copyable(x, self.w, out):
            self._run_token_tiles(x, self.w, out)
        else:
            self._run_weight_tiles(x, out)
        return out

    def _copyable(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether the copy engine can move what tiles of tokens read and write."""
        return describable(w) and describable(out) and (self.top_k is not None or describable(x))

    def _grid(self, columns: int) -> tuple[int]:
        blocks = triton.cdiv(self.x.shape[0], self.block_m) if self.groups is None else self.groups.capacity_blocks
        return (min(blocks * columns, num_multiprocessors(self.x.device) * self.tile.per_processor),)

    def _shared(self) -> dict[str, object]:
        groups, activation = self.groups, self.activation
        clamped = isinstance(activation, ClampedSwiGlu)
        return {
            "row_pair": None if groups is None else groups.row_pair,
            "block_expert": None if groups is None else groups.block_expert,
            "block_rows": None if groups is None else groups.block_rows,
            "num_blocks_ptr": None if groups is None else groups.num_blocks,
            "num_rows": self.x.shape[0],
            "bias": self.bias,
            "inputs": self.inputs,
            "part_rows": self.part_rows,
            "alpha": activation.alpha if isinstance(activation, ClampedSwiGlu) else 0.0,
            "limit": activation.limit if isinstance(activation, ClampedSwiGlu) else 0.0,
            "TOP_K": self.top_k or 1,
            "GROUPED": groups is not None,
            "GATHER": self.top_k is not None,
            "PARTS": self.parts,
            "ACTIVATION": "clamped" if clamped else "silu",
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.tile.block_n,
            "BLOCK_K": self.tile.block_k,
            "GROUP": self.tile.group,
            "num_warps": self.tile.num_warps,
            "num_stages": self.tile.num_stages,
        }

    def _run_token_tiles(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> None:
        tile, features = self.tile, self.tile.block_n // self.parts
        w_4d = w.view(-1, self.parts, self.part_rows, self.inputs)
        token_tiles[self._grid(triton.cdiv(self.part_rows, features))](
            x=x if self.top_k is not None else describe(x, [self.block_m, tile.block_k]),
            x_stride=x.stride(0),
            w=describe(w_4d, [1, self.parts, features, tile.block_k]),
            out=describe(out, [self.block_m, features]),
            FLATTEN=tile.flatten,
            **self._shared(),
        )

    def _run_weight_tiles(self, x: torch.Tensor, out: torch.Tensor) -> None:
        w, features = self.w, self.tile.block_n // self.parts
        if isinstance(w, DeviceWeight):
            kind, group, scales, scale_rows = w.kind, w.group, w.scales, w.scale_rows
            stored, width = w.codes.flatten(0, 1), words_per_block(w.kind)
        else:
            kind, group, scales, scale_rows = "bf16", 0, None, 1
            stored, width = w.reshape(-1, self.part_rows, self.inputs), self.tile.block_k
        tma = describable(stored)
        weight_tiles[self._grid(triton.cdiv(self.part_rows, features))](
            x=x,
            x_stride=x.stride(0),
            w=describe(stored, [1, features, width]) if tma else stored,
            scales=scales,
            out=out,
            out_stride=out.stride(0),
            num_groups=0 if scales is None else scales.shape[-2],
            KIND=kind,
            GROUP_SIZE=group,
            SCALE_ROWS=scale_rows,
            TMA=tma,
            **self._shared(),
        )
