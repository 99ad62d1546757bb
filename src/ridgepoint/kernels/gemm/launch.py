"""Starts the product kernels: descriptors, grids and the choice that alignment forces. Knows tiles, not operators.

Tiles of tokens go through the copy engine, which wants 16-byte aligned rows; a tensor without them (odd widths, in tests and
toy models) takes the other kernel with plain pointers, at the same BLOCK_M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ridgepoint.catalog.spec import Activation, ClampedSwiGlu
from ridgepoint.errors import ConfigError
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.gemm import gluon_blocks
from ridgepoint.kernels.gemm.dequantise import words_per_block
from ridgepoint.kernels.gemm.few_pairs import ROOM, FewPairs
from ridgepoint.kernels.gemm.fp8_tiles import fp8_tiles
from ridgepoint.kernels.gemm.quantise import quantise_rows
from ridgepoint.kernels.gemm.token_tiles import token_tiles
from ridgepoint.kernels.gemm.weight_tiles import weight_tiles
from ridgepoint.kernels.moe_experts.groups import Blocks, Groups
from ridgepoint.kernels.triton_call import describable, describe, num_multiprocessors, overlapped
from ridgepoint.kernels.tuning import Tile

Weight = torch.Tensor | DeviceWeight


@dataclass(frozen=True, kw_only=True)
class Product:
    """`act(w @ x + bias)` for rows of `x`. `activation` makes `w` a gated projection: gate rows, then up rows.

    With `groups`, `w` is one matrix per expert and rows are those of the groups, which with `top_k` are first gathered from
    the tokens in `x` (a token has `top_k` rows); the heights of tiles are then those of the groups' blocks. Few pairs are rows in
    their own order, of tiles of weights.
    """

    x: torch.Tensor
    w: Weight
    bias: torch.Tensor | None
    tile: Tile
    block_m: int
    out_dtype: torch.dtype
    groups: Groups | FewPairs | None = None
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

    def run(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The result, in `out` where that is given."""
        rows = self.groups.capacity_rows if isinstance(self.groups, Groups) else self._num_rows
        x = self.x if self.x.stride(-1) == 1 else self.x.contiguous()
        if out is None:
            out = torch.empty(rows, self.part_rows, dtype=self.out_dtype, device=x.device)
        rounded = quantise_rows(x) if isinstance(self.w, DeviceWeight) and self.w.product == "fp8-a8" else None
        for blocks in self.groups.tables if isinstance(self.groups, Groups) else (None,):
            if rounded is not None:
                self._run_fp8_tiles(*rounded, out, blocks)
            elif self.tile.kernel == "roles":
                self._run_by_roles(x, out, blocks)
            elif self.tile.kernel == "tokens" and isinstance(self.w, torch.Tensor) and self._copyable(x, self.w, out):
                self._run_token_tiles(x, self.w, out, blocks)
            else:
                self._run_weight_tiles(x, out, blocks)
        return out

    @property
    def _num_rows(self) -> int:
        """Of the result, where no list says which of its rows count."""
        return self.groups.count if isinstance(self.groups, FewPairs) else self.x.shape[0]

    def _copyable(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether the copy engine can move what tiles of tokens read and write."""
        return describable(w) and describable(out) and (self.top_k is not None or describable(x))

    def _grid(self, columns: int, blocks: Blocks | None) -> tuple[int]:
        if blocks is not None:
            count = blocks.capacity
        else:  # of few pairs each may be a block of its own
            count = self._num_rows if isinstance(self.groups, FewPairs) else triton.cdiv(self._num_rows, self.block_m)
        return (min(count * columns, num_multiprocessors(self.x.device) * self.tile.per_processor),)

    def _shared(self, blocks: Blocks | None) -> dict[str, object]:
        activation = self.activation
        clamped = isinstance(activation, ClampedSwiGlu)
        block_m = self.block_m if blocks is None else blocks.block_m
        few = self.groups if isinstance(self.groups, FewPairs) else None
        return {
            "row_pair": self.groups.row_pair if isinstance(self.groups, Groups) else None,
            "block_expert": few.expert_ids if few is not None else None if blocks is None else blocks.expert,
            "block_start": None if blocks is None else blocks.start,
            "block_rows": None if blocks is None else blocks.rows,
            "num_blocks_ptr": None if blocks is None else blocks.count,
            "num_rows": self._num_rows,
            "bias": self.bias,
            "inputs": self.inputs,
            "part_rows": self.part_rows,
            "alpha": activation.alpha if isinstance(activation, ClampedSwiGlu) else 0.0,
            "limit": activation.limit if isinstance(activation, ClampedSwiGlu) else 0.0,
            "TOP_K": self.top_k or 1,
            "GROUPED": blocks is not None,
            "GATHER": self.top_k is not None,
            "PARTS": self.parts,
            "ACTIVATION": "clamped" if clamped else "silu",
            "BLOCK_M": block_m,
            "BLOCK_N": self.tile.block_n,
            "BLOCK_K": self.tile.block_k,
            "GROUP": self.tile.group,
            "num_warps": self._num_warps(block_m),
            "num_stages": self.tile.num_stages,
        }

    def _num_warps(self, block_m: int) -> int:
        """Tiles of tokens give 16 rows to each warp of a group of four: a short block has half the warps of a tall one."""
        halved = self.tile.kernel == "tokens" and block_m < self.block_m
        return max(4, self.tile.num_warps // 2) if halved else self.tile.num_warps

    def _run_token_tiles(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, blocks: Blocks | None) -> None:
        tile, features = self.tile, self.tile.block_n // self.parts
        block_m = self.block_m if blocks is None else blocks.block_m
        w_4d = w.view(-1, self.parts, self.part_rows, self.inputs)
        token_tiles[self._grid(triton.cdiv(self.part_rows, features), blocks)](
            x=x if self.top_k is not None else describe(x, [block_m, tile.block_k]),
            x_stride=x.stride(0),
            w=describe(w_4d, [1, self.parts, features, tile.block_k]),
            out=describe(out, [block_m, features]),
            FLATTEN=tile.flatten,
            **self._shared(blocks),
            **overlapped(),
        )

    def _run_by_roles(self, x: torch.Tensor, out: torch.Tensor, blocks: Blocks | None) -> None:
        assert isinstance(self.w, torch.Tensor) and isinstance(self.groups, Groups) and blocks is not None
        block = gluon_blocks
        if not x.is_contiguous() or not describable(x):  # rows are copied 16 bytes at a time
            x = x.clone(memory_format=torch.contiguous_format)
        if x.numel() >= 1 << 31:
            raise ConfigError(
                f"{x.shape[0]} rows of {x.shape[1]} are more than 32-bit places reach", hint="lower max_step_tokens"
            )
        features, depth = block.FEATURES.value, block.DEPTH.value
        facts = {name: value for name, value in self._shared(blocks).items() if name in block.block_tiles.arg_names}
        w_4d = self.w.view(-1, self.parts, self.part_rows, self.inputs)
        rows = TensorDescriptor.from_tensor(x, [block.ROWS.value, depth], block.TILES.value)
        block.block_tiles[self._grid(triton.cdiv(self.part_rows, 2 * features // self.parts), blocks)](
            x=rows if self.top_k is None else x,
            x_stride=x.stride(0),
            w=TensorDescriptor.from_tensor(w_4d, [1, 1, features, depth], block.BOXES.value),
            out=out,
            out_stride=out.stride(0),
            **facts,
            num_warps=block.WARPS,
            maxnreg=block.REGISTERS,
            **overlapped(),
        )

    def _run_weight_tiles(self, x: torch.Tensor, out: torch.Tensor, blocks: Blocks | None) -> None:
        w, features = self.w, self.tile.block_n // self.parts
        if isinstance(w, DeviceWeight):
            kind, group, scales, scale_rows = w.kind, w.group, w.scales, w.scale_rows
            stored, width = w.codes.flatten(0, 1), words_per_block(w.kind)
        else:
            kind, group, scales, scale_rows = "bf16", 0, None, 1
            stored, width = w.reshape(-1, self.part_rows, self.inputs), self.tile.block_k
        tma = describable(stored)
        weight_tiles[self._grid(triton.cdiv(self.part_rows, features), blocks)](
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
            PAIRS=ROOM if isinstance(self.groups, FewPairs) else 0,
            **self._shared(blocks),
            **overlapped(),
        )

    def _run_fp8_tiles(
        self, codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, blocks: Blocks | None
    ) -> None:
        w, features = self.w, self.tile.block_n // self.parts
        assert isinstance(w, DeviceWeight) and 128 % features == 0, "a tile's rows share their scale"
        stored = w.codes.flatten(0, 1).view(torch.float8_e4m3fn)
        fp8_tiles[self._grid(triton.cdiv(self.part_rows, features), blocks)](
            x=codes,
            x_scales=scales,
            w=describe(stored, [1, features, self.tile.block_k]),
            w_scales=w.scales,
            out=out,
            out_stride=out.stride(0),
            **self._shared(blocks),
            **overlapped(),
        )
