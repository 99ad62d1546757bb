"""The tiles worth trying for a product, and what each asks of the GPU: shared by experts and linears of every format."""

from __future__ import annotations

from collections.abc import Iterator

from ridgepoint.kernels.gemm import gluon_blocks as by_roles
from ridgepoint.kernels.triton_call import INTERPRETED
from ridgepoint.kernels.tuning.configs import Tile
from ridgepoint.kernels.tuning.physics import ADDRESSES, Demand

# Of a weight, with its share of a scale.
BITS = {"bf16": 16.0, "fp8": 8.0, "fp8-a8": 8.0, "int8": 8.0, "int4": 4.25, "mxfp4": 4.25}
STREAMED_ROWS = 64  # of a matrix, up to which bf16 weights are streamed
MATRIX_ROWS = 64  # of a tile of tokens, below which it would miss the wide matrix instruction
MOST_ROWS = 256  # of a matrix, past which its blocks are tall ones mostly
BY_ROLES = Tile(
    kernel="roles", block_n=2 * by_roles.FEATURES.value, block_k=by_roles.DEPTH.value, group=1, num_warps=by_roles.WARPS,
    num_stages=by_roles.STAGES.value, per_processor=1,
)  # fmt: skip
AS_CODES = "fp8-a8"  # multiplied as they are, with activations of one byte, at twice the rate


def heights(rows: float) -> list[tuple[int, int]]:
    """(BLOCK_M, unit) worth trying for so many rows per matrix: around their number, within what the tiles hold, and past
    that both without and with short blocks."""
    if rows <= 4:
        return [(16, 16)]
    if rows > 128:
        return [(128, 128), (128, 64), *([(64, 64)] if rows <= 512 else [])]
    return [(m, m) for m in (16, 32, 64, 128) if rows / 4 <= m <= 4 * rows]


def tiles(kind: str, rows: float, block_m: int, parts: int) -> list[Tile]:
    """For blocks of `block_m` rows, of matrices with `rows`."""
    if kind != "bf16" or block_m < MATRIX_ROWS or rows <= STREAMED_ROWS:
        return list(_stream_tiles(kind, min(rows, 2 * block_m), parts))
    return list(_token_tiles())


def _stream_tiles(kind: str, rows: float, parts: int) -> Iterator[Tile]:
    """Narrow tiles while memory is the roof; wide ones of eight warps past that."""
    stages = (3, 4) if kind == "bf16" else (4, 6)
    if rows <= STREAMED_ROWS:
        for per_processor in (1, 2, 3, 4):
            for num_stages in stages:
                yield Tile(kernel="weights", block_n=64 * parts, block_k=128, group=8, num_warps=4, num_stages=num_stages,
                           per_processor=per_processor)  # fmt: skip
        if kind == "bf16":
            yield Tile(
                kernel="weights", block_n=64 * parts, block_k=64, group=8, num_warps=4, num_stages=6, per_processor=2
            )
    elif kind == AS_CODES:  # what is computed last takes registers beside the sums, so tiles are no wider
        for block_n, num_warps in ((128, 8), (64 * parts, 4)):
            for num_stages in (3, 4):
                yield Tile(kernel="weights", block_n=block_n, block_k=128, group=16, num_warps=num_warps,
                           num_stages=num_stages, per_processor=1)  # fmt: skip
    else:
        for block_n, num_warps in ((64 * parts, 4), (128 * parts, 8)):
            for num_stages in (2, 3):
                yield Tile(kernel="weights", block_n=block_n, block_k=128, group=16, num_warps=num_warps,
                           num_stages=num_stages, per_processor=1)  # fmt: skip


def _token_tiles() -> Iterator[Tile]:
    for block_n, num_warps in ((256, 8), (128, 4), (256, 4)):
        for num_stages in (3, 4):
            for flatten in (True, False):
                yield Tile(kernel="tokens", block_n=block_n, block_k=64, group=16, num_warps=num_warps,
                           num_stages=num_stages, per_processor=1 if block_n == 256 else 2, flatten=flatten)  # fmt: skip


def demand(
    tile: Tile, kind: str, block_m: int, *, matrices: float, rows: float, parts: int, part_rows: int, inputs: int,
    unit: int | None = None, out_bytes: int = 2, addresses: int = ADDRESSES,
) -> Demand:  # fmt: skip
    """Of a product with `matrices` touched matrices, `rows` rows of tokens each. Tokens come from the L2 cache, and so do the
    weights of a matrix after its first block of tokens. Half a unit of padding is the mean where rows vary."""
    stored = BITS[kind] / 8
    as_codes = kind == AS_CODES
    token_bytes = 1 if as_codes else 2
    weights_stage = tile.block_n * tile.block_k * stored
    blocks = max(1.0, (rows + (unit or block_m) / 2) / block_m) if rows > 1 else 1.0
    waits = block_m * (tile.block_n // parts) * out_bytes if tile.kernel == "tokens" else 0  # the tile that is stored
    return Demand(
        warps=tile.num_warps, per_processor=tile.per_processor,
        shared_bytes=int(tile.num_stages * (weights_stage + block_m * tile.block_k * token_bytes) + waits),
        accumulators=block_m * tile.block_n + _beside_sums(kind, tile.block_n // parts, block_m), items=matrices * blocks * -(-part_rows // (tile.block_n // parts)),
        addresses=addresses, item_bytes=tile.block_n * inputs * stored / blocks, item_l2_bytes=inputs * (tile.block_n * stored + block_m * token_bytes),
        item_flops=(1.0 if as_codes else 2.0) * block_m * tile.block_n * inputs, in_flight_bytes=int((tile.num_stages - 1) * weights_stage),
    )  # fmt: skip


def may_take_roles(kind: str, rows: float, *inputs: int) -> bool:
    """Whether both products of experts may run in `gluon_blocks`: rows for whole groups, inputs of whole stages. Gluon is compiled
    or nothing: the interpreter does not know it."""
    whole = all(width % by_roles.DEPTH.value == 0 for width in inputs)
    return kind == "bf16" and STREAMED_ROWS < rows <= MOST_ROWS and whole and not INTERPRETED.value


def _beside_sums(kind: str, rows: int, block_m: int) -> int:
    """32-bit registers that a tile of codes takes as numbers on its way to the matrix units: 16-bit ones, two to each, and
    of 8-bit codes float32 before that. Codes that are multiplied as they are take those of their last product instead."""
    if kind == AS_CODES:
        return int(
            rows * block_m * (2.4 if rows <= 64 else 1.0)
        )  # as compiled for sm_90: narrow tiles keep scaled sums too
    each = {"bf16": 0.0, "mxfp4": 0.5, "int4": 0.625}.get(kind, 1.5)  # int4 with the scales that it is multiplied by
    return int(rows * 128 * each)
