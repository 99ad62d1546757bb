"""A moment in a device's stream of work: the host can wait for it, and the time between two is the device's own."""

from __future__ import annotations

import time

import torch


class Moment:
    """On a CPU, where work is done when it is called, the moment is now."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self._at_s = 0.0

    def mark(self) -> None:
        """Let it be the point that the stream has been given work up to."""
        if self._event is not None:
            self._event.record()
        else:
            self._at_s = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Moment) -> float:
        """Both must have passed."""
        if self._event is not None and earlier._event is not None:
            return float(earlier._event.elapsed_time(self._event)) / 1e3
        return self._at_s - earlier._at_s
