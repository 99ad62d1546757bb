"""What an answer is made of, in the order in which it is told: words, reasoning, and calls of tools.

A text is what is said to the user. Invariant: an answer that is told whole is its streamed parts, joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Thought:
    """Reasoning, which is not said to the user."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call of this tool; its arguments follow."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the text of the JSON object that is handed to the call begun last."""

    text: str


@dataclass(frozen=True)
class Call:
    """A whole call. One that was cut has the beginning of its arguments."""

    name: str
    arguments: str


Part = str | Thought | CallBegun | Arguments


class CallLimit:
    """Counts calls. With `single` nothing that follows the first one is kept."""

    def __init__(self, *, single: bool) -> None:
        self.num_calls = 0
        self._single = single

    def keeps(self, part: Part) -> bool:
        if isinstance(part, CallBegun):
            self.num_calls += 1
        if not self._single or not self.num_calls:
            return True
        return self.num_calls == 1 and isinstance(part, CallBegun | Arguments)


@dataclass(frozen=True)
class Joined:
    """A whole answer: what was said, what was reasoned, and the calls."""

    content: str
    reasoning: str
    calls: list[Call]


def join(parts: Iterable[Part]) -> Joined:
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for part in parts:
        match part:
            case str():
                content.append(part)
            case Thought(text):
                reasoning.append(text)
            case CallBegun(name):
                calls.append((name, []))
            case Arguments(text):
                calls[-1][1].append(text)
    return Joined("".join(content), "".join(reasoning), [Call(name, "".join(texts)) for name, texts in calls])


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became final with one token: parts, and the offsets in what is said at which the tokens it completes begin."""

    parts: tuple[Part, ...]
    token_starts: tuple[int, ...]
    stop: str | None = None  # the stop string that ended the output; nothing may be pushed afterwards
