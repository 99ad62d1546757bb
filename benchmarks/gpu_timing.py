"""Timing of device work: graphs of rotating calls, the median of their replays, and memory that is never clean.

On a GPU the calls are captured in one graph, so that launches cost them nothing, and timed by events. They rotate among input
sets that together are larger than the last-level cache. Elsewhere (a smoke run) the same calls run one by one by the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ridgepoint.engine.nvml import clock_reader

MIN_ROUNDS = 5
CACHE_FACTOR = 3  # rotating inputs hold this many times the last-level cache


@dataclass(frozen=True)
class Timed:
    """Seconds of one call: the median, and how far the middle half of the rounds lies apart (a share of the median)."""

    seconds: float
    spread_frac: float
    captured: bool
    clock_hz: float | None = None  # of the multiprocessors, while they worked

    def facts(self) -> dict[str, float | bool | None]:
        return {
            "us": self.seconds * 1e6, "spread_frac": self.spread_frac, "captured": self.captured, "clock_hz": self.clock_hz,
        }  # fmt: skip


def num_sets(bytes_of_one: float, device: torch.device, most: int = 64) -> int:
    """How many input sets to rotate among so that none is still in the cache when its turn comes again."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(most, int(-(-CACHE_FACTOR * cache // max(1, bytes_of_one)))))


def median_of(calls: Sequence[Callable[[], object]], device: torch.device, budget_s: float) -> Timed:
    """Time of one of `calls`, which are equal but for their inputs. The first round compiles and is not counted."""
    for call in calls:
        call()
    if device.type != "cuda":
        return _by_clock(calls, budget_s)
    torch.cuda.synchronize()
    replay = _captured(calls)
    run = replay or (lambda: [call() for call in calls])
    run()
    torch.cuda.synchronize()
    seconds: list[float] = []
    clocks: list[float] = []
    clock = clock_reader(device)
    started_s = time.perf_counter()
    while len(seconds) < MIN_ROUNDS or time.perf_counter() - started_s < budget_s:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        if clock is not None and len(clocks) < MIN_ROUNDS:
            clocks.append(clock())  # the device works on
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / len(calls))
    return replace(_summary(seconds, replay is not None), clock_hz=statistics.median(clocks) if clocks else None)


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], None] | None:
    """One graph of all calls; None when they cannot be captured (they then pay for their launches, and the result says so)."""
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer one: a capture that fails would leave its own stream as the current one.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _by_clock(calls: Sequence[Callable[[], object]], budget_s: float) -> Timed:
    seconds: list[float] = []
    started_s = time.perf_counter()
    while len(seconds) < 2 or time.perf_counter() - started_s < budget_s:
        before_s = time.perf_counter()
        calls[len(seconds) % len(calls)]()
        seconds.append(time.perf_counter() - before_s)
    return _summary(seconds, False)


def _summary(seconds: list[float], captured: bool) -> Timed:
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (middle, middle, middle)
    return Timed(middle, (high - low) / middle, captured)


def host_us(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median microseconds the host spends in a call that leaves work behind; the device is idle when each begins."""
    taken = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before_s = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before_s)
    return statistics.median(taken) * 1e6


@contextmanager
def poisoned() -> Iterator[None]:
    """Every fresh tensor is full of NaN (or the largest integer), so an element that a kernel leaves out shows."""
    fill, mode = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """|out - reference| / |reference|; infinite when anything is not a number."""
    reference64 = reference.double()
    out64 = out.to(reference.device).double()
    if out64.shape != reference64.shape or not bool(out64.isfinite().all()):
        return float("inf")
    return float((out64 - reference64).norm() / reference64.norm().clamp(min=1e-30))
