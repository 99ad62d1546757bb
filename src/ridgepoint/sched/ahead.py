"""When a step's result is read: before the next step is made, or after the next one has left.

In turn, every decision knows every token. One ahead, the device never waits for the host: step N + 1 is made and launched
while N runs, then N is read. What that costs is known: a sequence that ends by a stop id has one more token computed and
thrown away, and a place it frees is filled a step later. Neither changes any sequence's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ridgepoint.sched.step import Batch, Executor, InFlight, LaunchingExecutor, StepResult


class Pace(Protocol):
    def push(self, batch: Batch | None) -> list[tuple[Batch, StepResult]]:
        """Run or launch `batch`; the steps that are done, oldest first, to be committed. `None`: nothing to launch."""
        ...

    @property
    def in_flight(self) -> bool:
        """Whether a launched step has not been handed back."""
        ...


class InTurn:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def push(self, batch: Batch | None) -> list[tuple[Batch, StepResult]]:
        return [] if batch is None else [(batch, self._executor.run(batch))]

    @property
    def in_flight(self) -> bool:
        return False


class OneAhead:
    """`advance` is the scheduler's: it counts a launched step as computed. A step whose tokens decide what may follow them is
    handed back at once, so the next one is made with them."""

    def __init__(self, executor: LaunchingExecutor, advance: Callable[[Batch], None]) -> None:
        self._executor, self._advance = executor, advance
        self._unread: tuple[Batch, InFlight] | None = None

    def push(self, batch: Batch | None) -> list[tuple[Batch, StepResult]]:
        before, self._unread = self._unread, None
        if batch is not None:
            self._unread = batch, self._executor.submit(batch)
            self._advance(batch)
        done = [] if before is None else [(before[0], before[1].wait())]
        if self._unread is not None and self._unread[1].is_known:
            done.append((self._unread[0], self._unread[1].wait()))
            self._unread = None
        return done

    @property
    def in_flight(self) -> bool:
        return self._unread is not None
