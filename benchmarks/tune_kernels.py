"""Which configurations are fastest for each kernel that has a choice, on this GPU? Writes the table that ridgepoint then reads.

Layers of a shape with random weights, each kind of kernel tried by the one tuner. `--smoke` tries one tiny problem of each kind
and keeps nothing; without a GPU it needs Triton's interpreter and then times that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from ridgepoint.catalog.spec import SwiGlu
from ridgepoint.kernels import tuning
from ridgepoint.kernels.device_weight import FORMATS, pack_for_device
from ridgepoint.kernels.linear.tunable import linear_problem
from ridgepoint.kernels.mla_attention import tunable as mla
from ridgepoint.kernels.mla_attention.triton import allocate as allocate_latents
from ridgepoint.kernels.moe_experts.tunable import ExpertLayer, expert_problem
from ridgepoint.kernels.paged_attention import tunable as paged
from ridgepoint.kernels.paged_attention.triton import allocate
from ridgepoint.kernels.triton_call import DEVICE_TYPE
from ridgepoint.kernels.tuning.tuner import Problem, buckets, measure_by_clock, measure_on_gpu, tune

PAGE = 16
DECODES = (1, 4, 16, 64, 256)  # as an engine tunes, so that it finds them
PROMPTS = (1024, 2048, 8192)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Operands of one layer, and the tokens to try its products at. `heads` is (query, key-value, width) or, for latents,
    (query, latent, rotary, value)."""

    experts: tuple[int, int, int, int] | None = None  # D, F, E, K
    heads: tuple[int, ...] | None = None
    linear: tuple[int, int] | None = None  # inputs, outputs
    tokens: tuple[int, ...] = (*DECODES, *PROMPTS)


SHAPES = {
    "qwen3-30b-a3b": Shape(experts=(2048, 768, 128, 8), heads=(32, 4, 128), tokens=(*DECODES, *PROMPTS, 32768)),
    "qwen3-235b-a22b": Shape(experts=(4096, 1536, 128, 8), heads=(64, 4, 128), tokens=(*DECODES, *PROMPTS, 32768)),
    "decode-2816": Shape(experts=(2816, 704, 128, 8), tokens=(1, 4, 16, 32, 128, 4096)),
    "gpt-oss-120b": Shape(experts=(2880, 2880, 128, 4), heads=(64, 8, 64)),
    "deepseek-v3": Shape(heads=(128, 512, 64, 128)),
    "linear-4096": Shape(linear=(4096, 8192)),
}
SMOKE = Shape(experts=(64, 64, 2, 1), heads=(4, 2, 16), linear=(128, 64), tokens=(2,))


def problems(shape: Shape, fmt: str, device: torch.device) -> list[Problem]:
    """Of one shape, decoding first."""
    found: list[Problem] = []
    sizes = buckets(shape.tokens, max(shape.tokens))
    context = 4096 if max(shape.tokens) > PAGE else PAGE
    if shape.experts is not None:
        layer = _expert_layer(*shape.experts, fmt, device)
        found += [expert_problem([layer], size, up_to) for size, up_to in sizes]
    if shape.linear is not None and fmt != "bf16":
        inputs, outputs = shape.linear
        weights = [pack_for_device(_random(outputs, inputs, device=device), fmt) for _ in range(4)]
        found += [linear_problem(weights, size, up_to) for size, up_to in sizes]
    if shape.heads is not None:
        decodes = [size for size in DECODES if size <= max(shape.tokens)]
        layers, module = _attention_layers(shape.heads, max(decodes) * context // PAGE + 1, device)
        found += [module.decode_problem(layers, size, context, up_to) for size, up_to in buckets(decodes, max(decodes))]
        found.append(module.prompt_problem(layers, min(8192, max(shape.tokens)), float(1 << 30)))
    return found


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5


def _expert_layer(d: int, f: int, e: int, k: int, fmt: str, device: torch.device) -> ExpertLayer:
    gate_up, down = _random(e, 2 * f, d, device=device), _random(e, d, f, device=device)
    packed = (gate_up, down) if fmt == "bf16" else (pack_for_device(gate_up, fmt, glu=True), pack_for_device(down, fmt))
    return ExpertLayer(gate_up=packed[0], down=packed[1], activation=SwiGlu(), top_k=k)


def _attention_layers(heads: tuple[int, ...], num_blocks: int, device: torch.device) -> tuple[list, object]:
    if len(heads) == 3:
        query, kv_heads, width = heads
        kv = allocate(num_blocks, PAGE, kv_heads, width, torch.bfloat16, device).normal_()
        layer = paged.PagedLayer(
            kv=kv, block_tokens=PAGE, num_heads=query, num_kv_heads=kv_heads, head_dim=width, scale=width**-0.5, window=None,
            sinks_H=None,
        )  # fmt: skip
        return [layer], paged
    query, latent, rotary, value = heads
    kv = allocate_latents(num_blocks, PAGE, latent, rotary, torch.bfloat16, device).normal_()
    lifts = [_random(query, value, latent, device=device) for _ in range(2)]
    return [
        mla.LatentLayer(
            kv=kv, block_tokens=PAGE, w_uk_HNC=lifts[0], w_uv_HVC=lifts[1], rope_dim=rotary, scale=(value + rotary) ** -0.5,
            window=None,
        )
    ], mla  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="qwen3-30b-a3b")
    parser.add_argument("--format", choices=["bf16", *FORMATS], default="bf16")
    parser.add_argument("--tokens", type=int, nargs="*", help="token counts (default: those of the shape)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further problem after this long")
    parser.add_argument("--out", type=Path, help="table to write (default: the one ridgepoint reads)")
    parser.add_argument("--smoke", action="store_true", help="tiny problems, nothing kept")
    args = parser.parse_args()
    device = torch.device(DEVICE_TYPE)
    if args.smoke:
        measure: Callable = measure_on_gpu if device.type == "cuda" else measure_by_clock
        wanted = problems(SMOKE, "int8", device) + problems(Shape(heads=(16, 32, 16, 16), tokens=(2,)), "bf16", device)
        for choice in tune(wanted, measure=measure, progress=print).choices:
            assert choice.figure.startswith("measure_s")
        return
    hardware = tuning.hardware_name(device)
    path = args.out or tuning.user_table(hardware)
    kept = {c.key: c for c in tuning.read_table(path)} if path.is_file() and not tuning.stale(path, hardware) else {}
    for name, shape in SHAPES.items():
        if args.shape not in (name, "all"):
            continue
        if args.tokens:
            shape = dataclasses.replace(shape, tokens=tuple(args.tokens))
        started_s, left = time.perf_counter(), 0
        for problem in problems(shape, args.format, device):
            if time.perf_counter() - started_s >= args.seconds:
                left += 1
                continue
            kept |= {choice.key: choice for choice in tune([problem], progress=print).choices}
            tuning.write_table(path, hardware, list(kept.values()))  # an end by force loses one
        print(f"{name}: tuned in {time.perf_counter() - started_s:.1f} s, {left} problems left")
    print(f"{len(kept)} choices in {path}")


if __name__ == "__main__":
    main()
