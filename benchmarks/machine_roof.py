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


WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}  # int4: a 16-bit scale per 32 values


def tokens_per_s(config: dict, roof: dict[str, float], kind: str, size: int, context: int, fmt: str = "bf16") -> float:
    """The most tokens/s an engine could reach at a point with weights as `fmt` has them: the larger of bytes over bandwidth and
    FLOPs over rate. One that keeps bf16 in fewer bits may pass it.

    Weights of distinct experts touched (uniform routing), attention projections and head in `fmt`, KV in bf16. Integer
    weights are multiplied at the integer rate, attention at bf16's. `size` is the batch of a decode step or the tokens of
    one prefill.
    """
    d, h, g, p = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))
    e, k, f, vocab = (
        config[key] for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "vocab_size")
    )
    layers = config["num_hidden_layers"]
    attention = d * (h + 2 * g) * p + h * p * d
    expert = 3 * d * f
    touched = e * (1 - (1 - k / e) ** size)
    keys = size * context if kind == "decode" else size * size / 2  # query-key pairs
    head_rows = size if kind == "decode" else 1
    matmul_flops = layers * 2 * size * (attention + d * e + k * expert) + 2 * head_rows * d * vocab
    rate = roof["bf16_flops_per_s" if fmt == "bf16" else "int8_flops_per_s"]
    flops_s = matmul_flops / rate + layers * 4 * h * p * keys / roof["bf16_flops_per_s"]
    kv_bytes = layers * 2 * 2 * g * p * (size * (context + 1) if kind == "decode" else size)
    num_bytes = WEIGHT_BYTES[fmt] * (layers * (attention + d * e + touched * expert) + d * vocab) + kv_bytes
    return size / max(num_bytes / roof["read_bytes_per_s"], flops_s)


if __name__ == "__main__":
    print(json.dumps({"cpu": provenance.cpu_name(), **measure(len(os.sched_getaffinity(0)))}, indent=1))
