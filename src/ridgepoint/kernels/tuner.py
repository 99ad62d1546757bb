"""Measures the tiles worth trying on the GPU at hand and keeps the best of each class of shapes: what `tuning` then reads.

A class is a product, a format, a shape and a number of rows per matrix. The two products of experts are timed apart and share
BLOCK_M, so a class costs (sizes of BLOCK_M) x (tiles) timings. A tile that does not fit the GPU is left out by name; one that
computes something else than the first is an error. Time is given by the caller's `measure`, which is how this runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import triton

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.errors import RidgepointError
from ridgepoint.kernels.device_weight import DeviceWeight, pack_for_device
from ridgepoint.kernels.gemm.launch import Product, Weight
from ridgepoint.kernels.moe_experts.groups import group_rows
from ridgepoint.kernels.tuning import Choice, Tile

Measure = Callable[[Callable[[], object]], float]
Announce = Callable[[str], None]
AGREEMENT = 1e-2  # relative difference that two tiles may have: the order of sums, rounded to bf16


class TunerError(RidgepointError):
    """A tile gave a wrong result, or none of a class could run."""


@dataclass(frozen=True, kw_only=True)
class ExpertsShape:
    """Experts to tune for, and the token counts that stand for their classes."""

    d_model: int
    width: int
    num_experts: int
    top_k: int
    tokens: tuple[int, ...]


def measure_on_gpu(run: Callable[[], object]) -> float:
    """Median seconds of a replay in a captured graph, so that launches cost what they cost in a captured step."""
    return float(triton.testing.do_bench_cudagraph(run, rep=30, return_mode="median")) / 1e3


def tune_experts(
    shape: ExpertsShape, fmt: str, device: torch.device, measure: Measure = measure_on_gpu, announce: Announce = print
) -> list[Choice]:
    """One choice per entry of `shape.tokens`, each good up to the rows per expert that it was measured at."""
    generator = torch.Generator(device=device).manual_seed(0)
    gate_up = _weight(shape.num_experts, 2 * shape.width, shape.d_model, fmt, True, generator)
    down = _weight(shape.num_experts, shape.d_model, shape.width, fmt, False, generator)
    last = max(shape.tokens)
    return [
        _tune_class(shape, tokens, tokens == last, gate_up, down, generator, measure, announce)
        for tokens in shape.tokens
    ]


def _tune_class(
    shape: ExpertsShape, tokens: int, last: bool, gate_up: Weight, down: Weight, generator: torch.Generator,
    measure: Measure, announce: Announce,
) -> Choice:  # fmt: skip
    kind = gate_up.product if isinstance(gate_up, DeviceWeight) else "bf16"
    rows = tokens * shape.top_k / shape.num_experts
    x = torch.randn(tokens, shape.d_model, device=generator.device, generator=generator).bfloat16()
    scores = torch.rand(tokens, shape.num_experts, device=generator.device, generator=generator)
    ids = scores.topk(shape.top_k).indices
    best: tuple[float, Choice] | None = None
    for block_m, unit in heights(rows):
        groups = group_rows(ids, shape.num_experts, block_m, unit)
        first = Product(
            x=x, w=gate_up, bias=None, tile=tiles(kind, rows, 2)[0], block_m=block_m, out_dtype=x.dtype, groups=groups,
            top_k=shape.top_k, activation=SwiGlu(),
        )  # fmt: skip
        second = Product(
            x=first.run(),
            w=down,
            bias=None,
            tile=tiles(kind, rows, 1)[0],
            block_m=block_m,
            out_dtype=x.dtype,
            groups=groups,
        )
        found = [_best_tile(p, tiles(kind, rows, p.parts), measure, announce) for p in (first, second)]
        seconds = sum(s for s, _ in found)
        if best is None or seconds < best[0]:
            best = seconds, Choice(
                product="experts", kind=kind, rows_up_to=float(1 << 30) if last else rows, block_m=block_m, unit=unit if unit < block_m else None,
                first=found[0][1], second=found[1][1], shape=(shape.d_model, 2 * shape.width),
                figure=f"measure_s {seconds:.3e} at {tokens} tokens",
            )  # fmt: skip
    assert best is not None
    announce(f"experts {kind} {shape.d_model}x{shape.width}, {tokens} tokens: {best[1].figure}, {best[1].first}")
    return best[1]


def _best_tile(product: Product, candidates: list[Tile], measure: Measure, announce: Announce) -> tuple[float, Tile]:
    timed: list[tuple[float, int]] = []
    want: torch.Tensor | None = None
    for index, tile in enumerate(candidates):
        attempt = replace(product, tile=tile)
        try:
            got = valid_rows(attempt, attempt.run()).float()
        except triton.runtime.errors.OutOfResources as error:
            announce(f"left out: {tile}: {error}")
            continue
        want = got if want is None else want
        difference = float((got - want).norm() / want.norm().clamp(min=1e-30))
        if not difference <= AGREEMENT:
            raise TunerError(f"{tile} differs from {candidates[0]} by {difference:.1e}; allowed: {AGREEMENT}")
        timed.append((measure(attempt.run), index))
    if not timed:
        raise TunerError(f"no tile of {len(candidates)} fits this GPU")
    seconds, index = min(timed)
    return seconds, candidates[index]


def valid_rows(product: Product, out: torch.Tensor) -> torch.Tensor:
    """The rows that belong to a pair."""
    return out if product.groups is None else out[product.groups.pair_row.long()]


def heights(rows: float) -> list[tuple[int, int]]:
    """(BLOCK_M, unit) worth trying for so many rows per expert: around their number, within what the tiles hold, and past
    that both without and with short blocks."""
    if rows <= 4:
        return [(16, 16)]
    if rows > 128:
        return [(128, 128), (128, 64), *([(64, 64)] if rows <= 512 else [])]
    return [(m, m) for m in (16, 32, 64, 128) if rows / 4 <= m <= 4 * rows]


def tiles(kind: str, rows: float, parts: int) -> list[Tile]:
    return list(_stream_tiles(kind, rows, parts)) if kind != "bf16" or rows <= 64 else list(_token_tiles())


def _stream_tiles(kind: str, rows: float, parts: int) -> Iterator[Tile]:
    """Narrow tiles while memory is the roof; wide ones of eight warps past that."""
    stages = (3, 4) if kind == "bf16" else (4, 6)
    if rows <= 64:
        for per_processor in (1, 2, 3, 4):
            for num_stages in stages:
                yield Tile(kernel="weights", block_n=64 * parts, block_k=128, group=8, num_warps=4, num_stages=num_stages,
                           per_processor=per_processor)  # fmt: skip
        if kind == "bf16":
            yield Tile(
                kernel="weights", block_n=64 * parts, block_k=64, group=8, num_warps=4, num_stages=6, per_processor=2
            )
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


def _weight(num: int, outputs: int, inputs: int, fmt: str, glu: bool, generator: torch.Generator) -> Weight:
    w = torch.randn(num, outputs, inputs, device=generator.device, generator=generator, dtype=torch.bfloat16)
    w *= inputs**-0.5
    return w if fmt == "bf16" else pack_for_device(w, fmt, glu=glu)
