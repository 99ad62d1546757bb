"""Energy of the steps between two reports, from a counter that also runs while the engine is idle."""

from __future__ import annotations

from collections.abc import Callable


class StepEnergy:
    """`joules` reads the device's counter. Idle time is left out: `resume` starts counting when work comes."""

    def __init__(self, joules: Callable[[], float]) -> None:
        self._joules = joules
        self._counted_to = joules()
        self._steps_counted = 0
        self.total = 0.0

    def resume(self) -> None:
        """Work begins after an idle time."""
        self._counted_to = self._joules()

    def per_step(self, steps: int) -> float | None:
        """Mean joules of the steps since the last call, of which there have been `steps` in all; None without any."""
        now = self._joules()
        used, done = now - self._counted_to, steps - self._steps_counted
        self._counted_to, self._steps_counted = now, steps
        self.total += used
        return used / done if done else None
