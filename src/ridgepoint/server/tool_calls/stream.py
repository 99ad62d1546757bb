"""The text of an answer as it comes, parted into what is said and which tools are called.

Holds back what may be the beginning of a call, and a call until it is whole. What begins like a call and is none is text.
Invariant: the parts depend on the whole text alone, not on how it was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

from ridgepoint.server.tool_calls.form import Call, Schemas, ToolFormat


class ToolStream:
    """`push` each piece of text, the last one with `final`. With `single` what follows the first call is left out."""

    def __init__(self, format_: ToolFormat, schemas: Schemas, *, single: bool) -> None:
        self.num_calls = 0
        self._format, self._schemas, self._single = format_, schemas, single
        self._held = ""
        self._inside = False  # after the mark that begins calls

    def push(self, text: str, *, final: bool = False) -> list[str | Call]:
        self._held += text
        parts = list(self._parts(final))
        return parts

    def _parts(self, final: bool) -> Iterator[str | Call]:
        while self._held or (self._inside and final):
            if self._single and self.num_calls:
                self._held, self._inside = "", False
                return
            if not self._inside:
                said, found = self._take_text(final)
                if said:
                    yield said
                if not found:
                    return
            else:
                region = self._take_region(final)
                if region is None:
                    return
                yield from region

    def _take_text(self, final: bool) -> tuple[str, bool]:
        """What is said before the next call, and whether one begins behind it."""
        if self.num_calls:
            self._held = self._held.lstrip()  # between calls
        begin = self._format.begin
        said, mark, rest = self._held.partition(begin)
        if mark:
            self._held, self._inside = rest, True
            return said, True
        keep = 0 if final else _overlap(said, begin)
        self._held = said[len(said) - keep :]
        return said[: len(said) - keep], False

    def _take_region(self, final: bool) -> list[str | Call] | None:
        """A region of calls that is whole: its calls, or its text where they are none. None while it may go on."""
        end = self._format.end
        region, mark, rest = self._held.partition(end) if end else (self._held, "", "")
        while mark and self._format.is_open(region):  # the mark is part of a value
            more, another, rest_after = rest.partition(mark)
            if not another:
                break
            region, rest = region + mark + more, rest_after
        if not final and (not mark or self._format.is_open(region)):
            return None
        calls = self._format.read(region, self._schemas)
        self._held, self._inside = rest, False
        if calls is None:
            return [self._format.begin + region + mark]
        kept: list[str | Call] = [*(calls[:1] if self._single else calls)]
        self.num_calls += len(kept)
        return kept


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of `text` that may begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
