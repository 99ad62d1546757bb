"""Measure this machine: FLOP/s by type and size, bandwidth by memory level, the overhead of a step; and write it down.

The best of repeats is what a roof is made of. All probes are gone through several times, and how far the bests of these passes lie
apart goes with every figure: on a machine that is busy with something else they disagree, and no repeat of one probe in one moment
would show it. A spread is said, never refused: some machines have no quiet hour. torch is used when present (its
products are the ones an engine runs, and it sees a GPU), numpy otherwise. The file is a hardware table like any other, whose every
number names this measurement as its source: roofs measured here stand where a data sheet's peaks would.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ridgepoint.cost.cuda_machine import measure_cuda

MATMUL_SIZES = (256, 1024, 2048)
LEVEL_BYTES = (1 << 18, 1 << 22, 1 << 28)  # about L2, last-level cache, memory
PASSES = 3
STEADY_FRAC = 0.10  # bests of passes on an idle machine lie within a few percent
_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class MachineMeasure:
    """`measure_flops_per_s[type][size]` of square products; `measure_bytes_per_s[bytes]` of reading that much (numpy:
    of reading half and writing half; a GPU: the better of the two). `measure_overheads_s` has what a GPU's launches cost, by name."""

    name: str
    device: str
    engine: str
    measure_flops_per_s: dict[str, dict[int, float]] = field(default_factory=dict)
    measure_bytes_per_s: dict[int, float] = field(default_factory=dict)
    measure_step_overhead_s: float = 0.0
    measure_overheads_s: dict[str, float] = field(default_factory=dict)
    memory_bytes: float | None = None
    date: str = ""
    spread_frac: dict[str, float] = field(default_factory=dict)
    load: float | None = None

    @property
    def provenance(self) -> str:
        return f"measure_: ridgepoint calibrate, {self.engine} on {self.device}, best of {PASSES} passes, {self.date}"

    @property
    def unsteady(self) -> str | None:
        """One sentence where passes disagree by more than `STEADY_FRAC`."""
        if not self.spread_frac:
            return None
        name = max(self.spread_frac, key=lambda probe: self.spread_frac[probe])
        if self.spread_frac[name] <= STEADY_FRAC:
            return None
        many = sum(spread > STEADY_FRAC for spread in self.spread_frac.values())
        busy = "" if self.load is None else f"; the load was {self.load:.1f} on {os.cpu_count()} threads"
        return f"unsteady: {many} of {len(self.spread_frac)} figures differ by more than {STEADY_FRAC:.0%} between passes, {name} by {_wide(self.spread_frac[name])}{busy}"

    def _apart(self, *probes: str) -> str:
        """How far the passes of these probes lie apart."""
        known = [self.spread_frac[probe] for probe in probes if probe in self.spread_frac]
        return f", passes within {_wide(max(known))}" if known else ""

    def to_toml(self) -> str:
        """A hardware file `ridgepoint plan --hardware FILE` reads."""
        source = self.provenance.replace('"', "'")
        unsteady = self.unsteady
        lines = [
            f"# Measured on {self.date}. Roofs are what this machine reached, not what a data sheet states.",
            *([f"# {unsteady}"] if unsteady else []),
            f"[{self.name}]", f'name = "{self.device}"', f'kind = "{"gpu" if self.engine.endswith("cuda") else "cpu"}"', 'confidence = "M"',
        ]  # fmt: skip
        for kind, by_size in self.measure_flops_per_s.items():
            best = max(by_size, key=lambda size: by_size[size])
            lines.append(f'flops_per_s_{kind} = [{by_size[best]:.4g}, "{source}{self._apart(f"{kind} {best}")}"]')
            lines += [
                f"# {kind} {size}: {rate:.3g} FLOP/s{self._apart(f'{kind} {size}')}" for size, rate in by_size.items()
            ]
        far = max(self.measure_bytes_per_s)
        lines.append(
            f'memory_bytes_per_s = [{self.measure_bytes_per_s[far]:.4g}, "{source}{self._apart(f"{far} bytes")}"]'
        )
        lines += [
            f"# {size} bytes: {rate:.3g} B/s{self._apart(f'{size} bytes')}"
            for size, rate in self.measure_bytes_per_s.items()
        ]
        if self.memory_bytes:
            lines.append(f'memory_bytes = [{self.memory_bytes:.6g}, "{source}"]')
        apart = self._apart("step overhead")
        lines.append(f'measure_step_overhead_s = [{self.measure_step_overhead_s:.3g}, "{source}{apart}"]')
        lines += [f"# {name}: {seconds:.3g} s" for name, seconds in self.measure_overheads_s.items()]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "device": self.device, "engine": self.engine, "date": self.date, "provenance": self.provenance,
            "measure_flops_per_s": {k: {str(s): r for s, r in v.items()} for k, v in self.measure_flops_per_s.items()},
            "measure_bytes_per_s": {str(s): r for s, r in self.measure_bytes_per_s.items()},
            "measure_step_overhead_s": self.measure_step_overhead_s, "measure_overheads_s": self.measure_overheads_s,
            "memory_bytes": self.memory_bytes, "passes": PASSES, "spread_frac": self.spread_frac, "load": self.load, "unsteady": self.unsteady,
        }  # fmt: skip


def _wide(spread_frac: float) -> str:
    return f"{spread_frac:.0%}" if spread_frac < 1 else f"a factor of {1 + spread_frac:.3g}"


def best_s(run: Callable[[], object], wait: Callable[[], object], budget_s: float) -> float:
    """Least seconds of one run within a time budget, after one warm-up. `wait` ends asynchronous work."""
    run()
    wait()
    best, spent, rounds = float("inf"), 0.0, 0
    while spent < budget_s or rounds < 3:
        started = time.perf_counter()
        run()
        wait()
        took = time.perf_counter() - started
        best, spent, rounds = min(best, took), spent + took, rounds + 1
    return best


def measure_machine(
    name: str = "this-machine", *, budget_s: float = 0.3, progress: Callable[[str], None] = lambda _: None
) -> MachineMeasure:
    """Everything above; about twelve measurements of `budget_s` each, a pass after another."""
    load = _load()
    passes = []
    for number in range(1, PASSES + 1):

        def tell(what: str, number: int = number) -> None:
            progress(f"{what}, pass {number} of {PASSES}")

        share_s = budget_s / PASSES
        passes.append(_with_torch(share_s, tell) if _torch() is not None else _with_numpy(share_s, tell))
    return MachineMeasure(name=name, date=time.strftime("%Y-%m-%d"), load=load, **best_of(passes))


def best_of(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of every figure over the passes, and how far apart the passes are."""
    spread: dict[str, float] = {}

    def best(probe: str, values: list[float], choose: Callable[[list[float]], float]) -> float:
        spread[probe] = max(values) / min(values) - 1.0
        return choose(values)

    flops = {
        kind: {size: best(f"{kind} {size}", [p["measure_flops_per_s"][kind][size] for p in passes], max) for size in by_size}
        for kind, by_size in passes[0]["measure_flops_per_s"].items()
    }  # fmt: skip
    levels = {
        size: best(f"{size} bytes", [p["measure_bytes_per_s"][size] for p in passes], max)
        for size in passes[0]["measure_bytes_per_s"]
    }
    overhead_s = best("step overhead", [p["measure_step_overhead_s"] for p in passes], min)
    least = min(passes, key=lambda p: float(p["measure_step_overhead_s"]))
    found = {"measure_flops_per_s": flops, "measure_bytes_per_s": levels, "measure_step_overhead_s": overhead_s}
    return {**least, **found, "spread_frac": spread}


def widened(bf16: dict[int, float], fp32: dict[int, float]) -> dict[int, float]:
    """A machine multiplies bf16 at least as fast as float32, to which it can be widened. What torch does where there is no product of
    bf16 (a fifth of that on Cascade Lake) is no roof: kernels that widen it beat it, and their steps would be refused."""
    return {size: max(rate, fp32[size]) for size, rate in bf16.items()}


def _load() -> float | None:
    """Processes that wanted to run over the last minute, where the system says so."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            found = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        found = []
    return f"{found[0] if found else platform.processor() or platform.machine()} ({os.cpu_count()} threads)"


def _host_memory_bytes() -> float | None:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None


def _with_numpy(budget_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
    def nothing() -> None:
        return None

    flops: dict[int, float] = {}
    for size in MATMUL_SIZES:
        progress(f"fp32 product of {size}")
        a = np.ones((size, size), np.float32)
        out = np.empty_like(a)
        flops[size] = 2.0 * size**3 / best_s(lambda a=a, out=out: np.matmul(a, a, out=out), nothing, budget_s)  # type: ignore[misc]
    levels = dict(_numpy_levels(budget_s, progress, nothing))
    small = np.ones(8, np.float32)
    overhead = best_s(lambda: [np.multiply(small, small, out=small) for _ in range(100)], nothing, budget_s) / 100
    return {
        "device": _cpu_name(), "engine": f"numpy {np.__version__}", "measure_flops_per_s": {"fp32": flops}, "measure_bytes_per_s": levels,
        "measure_step_overhead_s": overhead, "memory_bytes": _host_memory_bytes(),
    }  # fmt: skip


def _numpy_levels(
    budget_s: float, progress: Callable[[str], None], wait: Callable[[], object]
) -> Iterator[tuple[int, float]]:
    for size in LEVEL_BYTES:
        progress(f"copy of {size >> 10} KiB")
        source, target = np.ones(size // 8, np.float32), np.empty(size // 8, np.float32)
        yield size, size / best_s(lambda s=source, t=target: np.copyto(t, s), wait, budget_s)  # type: ignore[misc]


def _with_torch(budget_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
    torch = _torch()
    if torch.cuda.is_available():
        return measure_cuda(torch, budget_s, progress)

    def nothing() -> None:
        return None

    flops: dict[str, dict[int, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = _NAMES[str(dtype).removeprefix("torch.")]
        for size in MATMUL_SIZES:
            progress(f"{kind} product of {size}")
            a = torch.ones(size, size, dtype=dtype)
            out = torch.empty_like(a)
            seconds = best_s(lambda a=a, out=out: torch.mm(a, a, out=out), nothing, budget_s)  # type: ignore[misc]
            flops.setdefault(kind, {})[size] = 2.0 * size**3 / seconds
    flops["bf16"] = widened(flops["bf16"], flops["fp32"])
    for size in MATMUL_SIZES:
        progress(f"int8 product of {size}")
        a = torch.ones(size, size, dtype=torch.int8)
        seconds = best_s(lambda a=a: torch._int_mm(a, a), nothing, budget_s)  # type: ignore[misc]
        flops.setdefault("int8", {})[size] = 2.0 * size**3 / seconds
    levels: dict[int, float] = {}
    for size in LEVEL_BYTES:  # a step reads its weights; a copy's writes cost a CPU a second read of every line
        progress(f"read of {size >> 10} KiB")
        source = torch.ones(size // 4, dtype=torch.float32)
        levels[size] = size / best_s(source.sum, nothing, budget_s)
    small = torch.ones(8)
    overhead = best_s(lambda: [small.add_(1.0) for _ in range(100)], nothing, budget_s) / 100
    return {
        "device": _cpu_name(), "engine": f"torch {torch.__version__} cpu", "measure_flops_per_s": flops,
        "measure_bytes_per_s": levels, "measure_step_overhead_s": overhead, "memory_bytes": _host_memory_bytes(),
    }  # fmt: skip
