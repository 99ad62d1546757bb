"""The rates of this machine that bound every step, measured: bytes/s read from memory, bf16 FLOP/s, int8 OP/s.

Of a matrix rate the better of two measurements counts: the largest product torch runs, and dot products that never leave
registers where the native kernels are there to run them.

python benchmarks/machine_roof.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import provenance

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from ridgepoint.catalog.families import spec_from_config
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.kernels import native


def best_s(run: Callable[[], object], repeats: int) -> float:
    """The fastest of `repeats`: a roof is what the machine can do, not what it does on average."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bytes_per_s(threads: int, quick: bool = False) -> float:
    """Of memory, over a buffer far past any cache, now: on shared machines the rate changes by the minute."""
    num_bytes = (1 << 24) if quick else (1 << 28)
    if native.available():
        native.set_num_threads(threads)
        return native.measure_read_bytes_per_s(num_bytes, 3)
    torch.set_num_threads(threads)
    values = torch.ones(num_bytes // 4, dtype=torch.float32)
    return num_bytes / best_s(values.sum, 3)


def _torch_rates(threads: int, n: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
    a8, b8 = (torch.randint(-128, 127, (n, n), dtype=torch.int8) for _ in range(2))
    bf16_s, int8_s = best_s(lambda: a @ b, repeats), best_s(lambda: torch._int_mm(a8, b8), repeats)
    return {"bf16": 2 * n**3 / bf16_s, "int8": 2 * n**3 / int8_s}


def measure(threads: int, quick: bool = False, native_only: bool = False) -> dict[str, float]:
    """`read_bytes_per_s`, `bf16_flops_per_s` and `int8_flops_per_s`; `native_only`: those of the native kernels' ISA alone."""
    rates = {"bf16": 0.0, "int8": 0.0} if native_only else _torch_rates(threads, *((512, 3) if quick else (3072, 8)))
    if native.available():
        native.set_num_threads(threads)
        for kind in rates:
            rates[kind] = max(rates[kind], native.measure_peak_flops_per_s(kind, 20 if quick else 200))
    return {
        "threads": threads,
        "read_bytes_per_s": read_bytes_per_s(threads, quick),
        "bf16_flops_per_s": rates["bf16"],
        "int8_flops_per_s": rates["int8"],
    }


FORMATS = {"bf16": "bf16", "int8": "int8", "int4": "int4_g32"}  # a 16-bit scale per 32 values


def tokens_per_s(config: dict, roof: dict[str, float], kind: str, size: int, context: int, fmt: str = "bf16") -> float:
    """The most tokens/s an engine could reach at a point with weights as `fmt` has them: the larger of bytes over bandwidth and
    FLOPs over rate, as the step law counts them. One that keeps bf16 in fewer bits may pass it.

    Weights of distinct experts touched (uniform routing), attention projections, router and head in `fmt`, KV in bf16. Integer
    weights are multiplied at the integer rate, attention at bf16's. `size` is the batch of a decode step or the tokens of
    one prefill, of which the last one's logits are wanted.
    """
    weights = dict.fromkeys(("weights", "experts", "head"), FORMATS[fmt])
    batch = StepBatch.decode(size, context) if kind == "decode" else StepBatch.prefill(1, size)
    rate = {"attention": roof["bf16_flops_per_s"]}
    num_bytes = flops_s = 0.0
    for kernel in step_amounts(spec_from_config(config), Layout(), Precision(**weights), batch).kernels:
        num_bytes += kernel.repeats * (kernel.weight_bytes + kernel.kv_bytes)
        of_weights = roof["bf16_flops_per_s" if fmt == "bf16" else "int8_flops_per_s"]
        flops_s += kernel.repeats * kernel.flops / rate.get(kernel.part, of_weights)
    return size / max(num_bytes / roof["read_bytes_per_s"], flops_s)


if __name__ == "__main__":
    print(json.dumps({"cpu": provenance.cpu_name(), **measure(len(os.sched_getaffinity(0)))}, indent=1))
