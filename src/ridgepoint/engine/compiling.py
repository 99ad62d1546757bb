"""Submissions that wait for their grammar: compiled elsewhere, admitted between two steps.

Knows neither scheduler nor grammars' content. Invariant: each that comes in goes out once, ready or cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from ridgepoint.engine.constraint import Constraint
from ridgepoint.engine.protocol import Submit

WAIT_S = 0.002  # an engine that has nothing else to do looks at its messages this often


@dataclass(frozen=True)
class Compiling:
    """`constraint.result()` raises what was wrong with the grammar."""

    submit: Submit
    arrived_s: float
    constraint: Future[Constraint]


class CompilingQueue:
    def __init__(self) -> None:
        self._by_id: dict[str, Compiling] = {}

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def add(self, one: Compiling) -> None:
        self._by_id[one.submit.request_id] = one

    def cancel(self, request_id: str) -> bool:
        """Whether it was here."""
        return self._by_id.pop(request_id, None) is not None

    def take_ready(self, *, idle: bool) -> Iterator[Compiling]:
        """Those whose compilation has ended; with nothing else to do, after a moment's wait for one."""
        if idle:
            wait([one.constraint for one in self._by_id.values()], WAIT_S, FIRST_COMPLETED)
        for request_id, one in list(self._by_id.items()):
            if one.constraint.done():
                del self._by_id[request_id]
                yield one
