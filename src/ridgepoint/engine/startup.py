"""How long each part of a start took, for the log and for /metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("load", "tune", "capture")  # weights; tables of tuned kernels; graphs, with the compilation of their kernels


class Startup:
    """Seconds of each part so far; a part that did not happen took none."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started_s

    def line(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"start: {sum(self.seconds.values()):.1f} s ({parts})"
