"""What `calibrate` measures on an NVIDIA GPU: matrix products by type and size, copies and reads, and what a launch costs.

Device events time device work, so the host's calls stay out; the overheads are the opposite, the host's clock around
calls that the device hardly notices. Inputs are random: products of equal numbers run faster than real ones do. Every function
takes torch and a device, so that the ones without graphs run anywhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SIZES = (1024, 4096, 8192)
LEVEL_BYTES = (1 << 24, 1 << 28, 1 << 32)  # in L2, past it, far past it
LAUNCHES = 1000
GRAPH_KERNELS = (64, 1024)  # two lengths: the slope is a kernel, the rest a replay
Progress = Callable[[str], None]


def measure_cuda(torch: Any, budget_s: float, progress: Progress) -> dict[str, Any]:
    """The parts of a `MachineMeasure` for the current CUDA device."""
    device = torch.device("cuda", torch.cuda.current_device())
    facts = torch.cuda.get_device_properties(device)

    def best_s(run: Callable[[], object]) -> float:
        return best_device_s(torch, run, budget_s)

    overheads = overheads_s(torch, device, progress)
    return {
        "device": facts.name,
        "engine": f"torch {torch.__version__} cuda",
        "measure_flops_per_s": {
            kind: matrix_rates(torch, device, SIZES, best_s, progress, kind) for kind in matrix_kinds(torch, device)
        },
        "measure_bytes_per_s": byte_rates(torch, device, LEVEL_BYTES, best_s, progress),
        "measure_step_overhead_s": overheads["launch_s"],
        "measure_overheads_s": overheads,
        "memory_bytes": float(facts.total_memory),
    }


def best_device_s(torch: Any, run: Callable[[], object], budget_s: float) -> float:
    """Least seconds of one run by the device's own clock, within about `budget_s`, after two warm-ups."""
    run()
    run()
    torch.cuda.synchronize()
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < budget_s or rounds < 5:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        took = start.elapsed_time(end) / 1e3
        best, spent, rounds = min(best, took), spent + took, rounds + 1
    return best


def matrix_kinds(torch: Any, device: Any) -> tuple[str, ...]:
    """The types that `matrix_rates` can measure here: fp8 where the matrix units have it."""
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return ("fp32", "bf16", "fp8") if has_fp8 else ("fp32", "bf16")


def matrix_rates(
    torch: Any,
    device: Any,
    sizes: tuple[int, ...],
    best_s: Callable[[Callable[[], object]], float],
    progress: Progress,
    kind: str,
) -> dict[int, float]:
    """FLOP/s of square products of one type, by size."""
    rates: dict[int, float] = {}
    one = torch.ones((), device=device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[kind]
    for size in sizes:
        progress(f"{kind} product of {size}")
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        if kind == "fp8":
            seconds = best_s(
                lambda a=a, b=b: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)  # type: ignore[misc]
            )
        else:
            out = torch.empty_like(a)
            seconds = best_s(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc]
        rates[size] = 2.0 * size**3 / seconds
    return rates


def byte_rates(
    torch: Any,
    device: Any,
    levels: tuple[int, ...],
    best_s: Callable[[Callable[[], object]], float],
    progress: Progress,
) -> dict[int, float]:
    """Bytes/s by bytes moved: the better of a copy (half read, half written) and a read of all."""
    rates: dict[int, float] = {}
    for size in levels:
        progress(f"copy and read of {size >> 10} KiB")
        source = torch.randn(size // 4, device=device)
        target, total = torch.empty_like(source), torch.empty((), device=device)
        copy_s = best_s(lambda s=source, t=target: t[: len(t) // 2].copy_(s[: len(s) // 2]))  # type: ignore[misc]
        read_s = best_s(lambda s=source, t=total: torch.sum(s, 0, out=t))  # type: ignore[misc]
        rates[size] = size / min(copy_s, read_s)
    return rates


def overheads_s(torch: Any, device: Any, progress: Progress) -> dict[str, float]:
    """What launching costs: `launch_s` of host time for one small kernel; `graph_launch_s` of host time for a replay;
    `graph_kernel_s` of device time for each small kernel in a graph; `graph_round_trip_s` from the call to its end, seen by
    a host that waits."""
    progress("launches and graph replays")
    small = torch.randn(1024, device=device)

    def kernels(count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                small.mul_(0.5)

        return run

    def host_s(run: Callable[[], object], repeats: int, wait: bool) -> float:
        seconds = []
        for _ in range(repeats):
            torch.cuda.synchronize()
            started_s = time.perf_counter()
            run()
            if wait:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started_s)
        return statistics.median(seconds)

    graphs = {count: _graph(torch, kernels(count)) for count in (1, *GRAPH_KERNELS)}
    short, long = (best_device_s(torch, graphs[count].replay, 0.05) for count in GRAPH_KERNELS)
    kernels(LAUNCHES)()
    return {
        "launch_s": host_s(kernels(LAUNCHES), 9, wait=False) / LAUNCHES,
        "graph_launch_s": host_s(graphs[GRAPH_KERNELS[0]].replay, 99, wait=False),
        "graph_kernel_s": (long - short) / (GRAPH_KERNELS[1] - GRAPH_KERNELS[0]),
        "graph_round_trip_s": host_s(graphs[1].replay, 99, wait=True),
    }


def _graph(torch: Any, run: Callable[[], None]) -> Any:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
