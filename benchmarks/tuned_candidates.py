"""What the tuner would try for the shapes of known models, as launches over tensors without memory: `gpu_compile.py --candidates`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from attention_launches import KEPT, PAGE, indices, meta, plan
from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels.device_weight import unfilled_for_device
from ridgepoint.kernels.linear.triton import linear
from ridgepoint.kernels.linear.tunable import linear_problem
from ridgepoint.kernels.mla_attention import triton as mla_path
from ridgepoint.kernels.mla_attention import tunable as mla
from ridgepoint.kernels.moe_experts.triton import moe_experts
from ridgepoint.kernels.moe_experts.tunable import ExpertLayer, expert_problem
from ridgepoint.kernels.paged_attention import triton as paged_path
from ridgepoint.kernels.paged_attention import tunable as paged
from ridgepoint.kernels.tuning import Config, ExpertTiles, LinearTiles, pinned
from ridgepoint.kernels.tuning.tuner import Problem
from tune_kernels import Shape

FORMATS = ("fp8", "fp8-a8", "int8-128", "int4-32", "mxfp4")
EXPERTS = {"qwen3-30b-a3b": (2048, 768, 128, 8), "gpt-oss-120b": (2880, 2880, 128, 4)}  # D, F, E, K
HEADS = {"32:4x128": (32, 4, 128, None), "64:8x64 window": (64, 8, 64, 128)}
LATENTS = (16, 128)  # heads
PRODUCTS, SPLITS, TILES = ("token_tiles", "weight_tiles", "block_tiles", "fp8_tiles"), "attend_splits", "attend_tiles"


@dataclass(frozen=True)
class Candidate:
    name: str
    op: str
    config: Config
    launch: Callable[[], object]

    def run(self) -> None:
        with pinned(self.op, self.config):
            self.launch()

    def tried(self, launches: Sequence[Any]) -> Iterator[tuple[Any, int]]:
        """The launches that the configuration is about, with the programs of each that are to share a multiprocessor."""
        config = self.config
        products = [launch for launch in launches if launch.kernel.__name__ in PRODUCTS]
        if isinstance(config, ExpertTiles):
            half = len(products) // 2  # tall blocks and perhaps short ones, of gate and up; then the same of down
            yield from ((launch, config.first.per_processor) for launch in products[:half])
            yield from ((launch, config.second.per_processor) for launch in products[half:])
        elif isinstance(config, LinearTiles):
            yield from ((launch, config.first.per_processor) for launch in products)
        else:
            wanted = SPLITS if self.op.endswith("decode") else TILES
            yield from ((launch, config.per_sm) for launch in launches if launch.kernel.__name__ == wanted)


def candidates(smoke: bool) -> Iterator[Candidate]:
    """Every candidate of every round, each round around what the tables or estimates say."""
    for name, problem, launch in _problems(smoke):
        yield from _candidates(name, problem, launch)


def _candidates(name: str, problem: Problem, launch: Callable[[], object]) -> Iterator[Candidate]:
    for round_ in problem.rounds:
        for config in round_(problem.estimate):
            yield Candidate(name, problem.op, config, launch)


def candidates_of(name: str, shape: Shape, fmt: str, tokens: Sequence[int]) -> Iterator[Candidate]:
    """The same for one shape of `tune_kernels.py`."""
    problems: list[tuple[str, Problem, Callable[[], object]]] = []
    if shape.experts is not None:
        problems += [_experts(f"experts {name} {fmt} x{size}", *shape.experts, fmt, size) for size in tokens]
    if shape.linear is not None:
        problems += [_linear(f"linear {name} {fmt} x{size}", *shape.linear, fmt, size) for size in tokens]
    if shape.heads is not None:
        latent = len(shape.heads) == 4
        problems += (
            _mla(f"mla {name}", shape.heads[0], "bf16")
            if latent
            else _paged(f"paged {name}", *shape.heads, None, "bf16")
        )
    for name, problem, launch in problems:
        yield from _candidates(name, problem, launch)


def _problems(smoke: bool) -> Iterator[tuple[str, Problem, Callable[[], object]]]:
    for model, (d, f, e, k) in EXPERTS.items() if not smoke else []:
        for fmt in ("bf16", *FORMATS) if model == "qwen3-30b-a3b" else ("mxfp4",):
            for tokens in (4, 64, 256, 1024, 2048, 8192):
                yield _experts(f"experts {model} {fmt} x{tokens}", d, f, e, k, fmt, tokens)
    for fmt in FORMATS if not smoke else FORMATS[:1]:
        for rows in (4, 64, 1024) if not smoke else (4,):
            yield _linear(f"linear {fmt} x{rows}", 4096, 8192, fmt, rows)
    for heads, shape in HEADS.items() if not smoke else []:
        for kept in KEPT:
            yield from _paged(f"paged {heads} {kept}", *shape, kept)
    for num_heads in LATENTS if not smoke else ():
        for kept in KEPT:
            yield from _mla(f"mla {num_heads} {kept}", num_heads, kept)


def _experts(
    name: str, d: int, f: int, e: int, k: int, fmt: str, tokens: int
) -> tuple[str, Problem, Callable[[], object]]:
    def weight(outputs: int, inputs: int, glu: bool) -> Any:
        if fmt == "bf16":
            return meta(e, outputs, inputs)
        return unfilled_for_device(fmt, e, outputs, inputs, glu=glu, stacked=True, device="meta")

    layer = ExpertLayer(gate_up=weight(2 * f, d, True), down=weight(d, f, False), activation=SwiGlu(), top_k=k)
    launch = partial(
        moe_experts, meta(tokens, d), meta(tokens, k, dtype=torch.float32), indices(tokens, k), layer.gate_up, layer.down,
        layer.activation,
    )  # fmt: skip
    return name, expert_problem([layer], tokens, tokens), launch


def _linear(name: str, inputs: int, outputs: int, fmt: str, rows: int) -> tuple[str, Problem, Callable[[], object]]:
    w = unfilled_for_device(fmt, 1, outputs, inputs, device="meta")
    return name, linear_problem([w], rows, rows), partial(linear, meta(rows, inputs), w)


def _paged(
    name: str, heads: int, kv_heads: int, width: int, window: int | None, kept: str
) -> Iterator[tuple[str, Problem, Callable[[], object]]]:
    kv = paged_path.allocate(64, PAGE, kv_heads, width, KEPT[kept], "meta")
    layer = paged.PagedLayer(
        kv=kv,
        block_tokens=PAGE,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        scale=1.0,
        window=window,
        sinks_H=None,
    )
    launch = partial(paged_path.attend, meta(4096, heads, width), kv, plan(), 1.0, window, None)
    for seqs in (1, 64):
        yield f"{name} decode x{seqs}", paged.decode_problem([layer], seqs, 4096, seqs), launch
    yield f"{name} prompt", paged.prompt_problem([layer], 8192, 8192), launch


def _mla(name: str, heads: int, kept: str) -> Iterator[tuple[str, Problem, Callable[[], object]]]:
    kv = mla_path.allocate(64, PAGE, 512, 64, KEPT[kept], "meta")
    lifts = meta(heads, 128, 512), meta(heads, 128, 512)
    layer = mla.LatentLayer(
        kv=kv, block_tokens=PAGE, w_uk_HNC=lifts[0], w_uv_HVC=lifts[1], rope_dim=64, scale=1.0, window=None
    )
    launch = partial(mla_path.attend, meta(4096, heads, 128), meta(4096, heads, 64), kv, *lifts, plan(), 1.0, None)
    for seqs in (1, 64):
        yield f"{name} decode x{seqs}", mla.decode_problem([layer], seqs, 4096, seqs), launch
    yield f"{name} prompt", mla.prompt_problem([layer], 8192, 8192), launch
