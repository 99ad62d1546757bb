"""Which tiles are fastest for routed experts on this GPU? Writes the table that ridgepoint then starts with.

`--smoke` tries one tiny class and keeps nothing; without a GPU it needs Triton's interpreter and then measures that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from ridgepoint.kernels import tuner, tuning
from ridgepoint.kernels.device_weight import FORMATS
from ridgepoint.kernels.triton_call import DEVICE_TYPE

TOKENS = (1, 4, 16, 64, 128, 512, 1024, 4096, 32768)
SHAPES = {
    "qwen3-30b-a3b": tuner.ExpertsShape(d_model=2048, width=768, num_experts=128, top_k=8, tokens=TOKENS),
    "qwen3-235b-a22b": tuner.ExpertsShape(d_model=4096, width=1536, num_experts=128, top_k=8, tokens=TOKENS),
    "decode-2816": tuner.ExpertsShape(d_model=2816, width=704, num_experts=128, top_k=8, tokens=TOKENS[:-1]),
    "gpt-oss-120b": tuner.ExpertsShape(d_model=2880, width=2880, num_experts=128, top_k=4, tokens=TOKENS[:-1]),
}
SMOKE = tuner.ExpertsShape(d_model=64, width=64, num_experts=2, top_k=1, tokens=(2,))


def host_seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="qwen3-30b-a3b")
    parser.add_argument("--format", choices=["bf16", *FORMATS], default="bf16")
    parser.add_argument("--tokens", type=int, nargs="*", help="token counts (default: 1 to 32768)")
    parser.add_argument("--out", type=Path, help="table to write (default: the one ridgepoint reads)")
    parser.add_argument("--smoke", action="store_true", help="one tiny class, nothing kept")
    args = parser.parse_args()
    device = torch.device(DEVICE_TYPE)
    if args.smoke:
        measure = tuner.measure_on_gpu if device.type == "cuda" else host_seconds
        tuner.tune_experts(SMOKE, args.format, device, measure)
        return
    hardware = tuning.hardware_name(device)
    path = args.out or tuning.user_table(hardware)
    kept = tuning.read_table(path) if path.is_file() and not tuning.stale(path) else []
    for name, shape in SHAPES.items():
        if args.shape not in (name, "all"):
            continue
        if args.tokens:
            shape = tuner.ExpertsShape(**{**shape.__dict__, "tokens": tuple(args.tokens)})
        fresh = tuner.tune_experts(shape, args.format, device)
        replaced = {(c.product, c.kind, c.shape) for c in fresh}
        kept = [c for c in kept if (c.product, c.kind, c.shape) not in replaced] + fresh
        tuning.write_table(path, hardware, kept)
    print(f"{len(kept)} choices in {path}")


if __name__ == "__main__":
    main()
