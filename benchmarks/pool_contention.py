"""What does another busy process cost a step of the native thread pool?

    python benchmarks/pool_contention.py --json benchmarks/results/pool_contention.json
    python benchmarks/pool_contention.py --smoke

A step of many small operators (each ends in a barrier) is replayed alone, then beside one process that never stops, then
beside one for every core. Fair shares of the cores would stretch a step to `(threads + processes) / cores` of its own time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import provenance
from ridgepoint.kernels import native
from ridgepoint.kernels.linear import linear
from ridgepoint.kernels.packed import pack
from ridgepoint.kernels.tensor_call import Recording, recording


def small_step(num_ops: int, width: int) -> Recording:
    """A chain of products, each some tens of microseconds on one core."""
    w = pack((torch.randn(width, width) / width**0.5).bfloat16())
    x = torch.randn(8, width).bfloat16()
    with recording(8, 1) as recorded:
        for _ in range(num_ops):
            x = linear(x, w)
    return recorded


def step_times(step: Recording, seconds: float) -> list[float]:
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        step.replay(8, 0)
        times.append(time.perf_counter() - started)
    return times


def beside(num_processes: int, step: Recording, seconds: float) -> dict[str, float]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        time.sleep(0.3 if busy else 0.0)
        times = sorted(step_times(step, seconds))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return {
        "processes": num_processes,
        "median_us": statistics.median(times) * 1e6,
        "mean_us": statistics.mean(times) * 1e6,
        "p99_us": times[int(0.99 * (len(times) - 1))] * 1e6,
    }


def table(result: dict[str, Any]) -> str:
    """Microseconds of a step by the number of competing processes."""
    rows = [f"{'processes':>9}{'median us':>12}{'mean us':>12}{'p99 us':>12}{'mean, of alone':>16}"]
    alone = result["rows"][0]["mean_us"]
    rows += [
        f"{row['processes']:9}{row['median_us']:12.0f}{row['mean_us']:12.0f}{row['p99_us']:12.0f}{row['mean_us'] / alone:16.2f}"
        for row in result["rows"]
    ]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny: a check that the benchmark runs")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 0.02 if options.smoke else 3.0
    with torch.inference_mode():
        step = small_step(*((4, 64) if options.smoke else (100, 1024)))
        rows = [beside(n, step, seconds) for n in ([0, 1] if options.smoke else [0, 1, native.usable_cores(), 0])]
    result = {**provenance.provenance(__doc__), "threads": native.num_threads(), "rows": rows}
    provenance.save(options.json, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
