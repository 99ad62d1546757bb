"""A clock that moves when it is told to."""

from __future__ import annotations


class SimulatedClock:
    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "time does not go back"
        self._now_s += seconds

    def advance_to(self, moment_s: float) -> None:
        self._now_s = max(self._now_s, moment_s)
