"""How long each part of a start took, for the log and for /metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = (
    "load",
    "tune",
    "compile",
    "capture",
)  # weights; trying kernels' configurations; kernels not seen till then; graphs


class Startup:
    """Seconds of each part so far; a part that did not happen took none. `configurations` counts the kernels' choices that
    were loaded, tuned, and left for another start; empty where there is nothing to choose."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.configurations: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started_s

    def line(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        counts = ", ".join(f"{count} {name}" for name, count in self.configurations.items())
        return f"start: {sum(self.seconds.values()):.1f} s ({parts})" + (f"; kernel choices {counts}" if counts else "")
