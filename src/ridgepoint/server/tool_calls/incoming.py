"""Text that is still coming, for readers that are written as if all of it were there.

A reader is a generator: it yields parts, and None where it cannot go on without more text. Invariant: nothing is yielded
that more text could take back, so what a reader tells depends on the text alone, not on how it came.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import AnyStr

from ridgepoint.server.parts import Arguments, Part

Reading = Generator[Part | None, None, None]
Search = Generator[Part | None, None, bool]  # whether what was looked for came


class Incoming:
    """`held` has come and was not taken; `final`: nothing follows it. `searched` characters of it need no second look."""

    def __init__(self) -> None:
        self.held = ""
        self.final = False
        self.searched = 0

    def add(self, text: str, *, final: bool) -> None:
        self.held += text
        self.final = final

    def take(self, num_chars: int) -> str:
        taken, self.held = self.held[:num_chars], self.held[num_chars:]
        self.searched = 0
        return taken

    def strip(self) -> Generator[None, None, None]:
        """Leave blanks out, however many come."""
        while True:
            self.take(len(self.held) - len(self.held.lstrip()))
            if self.held or self.final:
                return
            yield None

    def take_word(self, *words: str) -> Generator[None, None, str | None]:
        """That one of the words with which the held text begins; None where it begins with none."""
        while True:
            for word in words:
                if self.held.startswith(word):
                    return self.take(len(word))
            if self.final or not any(word.startswith(self.held) for word in words):
                return None
            yield None


def until(text: Incoming, mark: str, told_as: Callable[[str], Part] = str) -> Search:
    """What stands before a mark, as it comes; the mark is taken too."""
    while True:
        before, found, _ = text.held.partition(mark)
        sure = len(before) - (0 if found or text.final else overlap(before, mark))
        if sure:
            yield told_as(before[:sure])
        text.take(sure + len(found))
        if found or text.final:
            return bool(found)
        yield None


def json_object(text: Incoming, end: str | None) -> Search:
    """An object of JSON as it comes, up to the brace that closes it. Nothing is checked inside, but a mark `end` outside of
    strings, which no JSON holds, ends an object that was left open."""
    depth, in_string, escaped = 0, False, False
    while True:
        sure = len(text.held)
        for place, char in enumerate(text.held):
            if escaped:
                escaped = False
            elif in_string:
                in_string, escaped = char != '"', char == "\\"
            elif end is not None and char == end[0] and (text.held.startswith(end, place) or _begins(text, end, place)):
                sure = place
                break
            elif char == '"':
                in_string = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
                if depth == 0:
                    yield Arguments(text.take(place + 1))
                    return True
        if sure:
            yield Arguments(text.take(sure))
        if text.final or (end is not None and text.held.startswith(end)):
            return False
        yield None


def _begins(text: Incoming, mark: str, place: int) -> bool:
    """Whether the held text from `place` on may become `mark`."""
    return not text.final and mark.startswith(text.held[place:])


def overlap(text: AnyStr, mark: AnyStr) -> int:
    """Characters, or bytes, at the end of `text` that may begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
