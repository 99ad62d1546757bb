"""The text of an answer as it comes, parted into what is said and which tools are called.

Holds back what may be the beginning of a call, until it is sure which tool is called; from there its arguments are told as
they come. What begins like a call and is none is text. Invariant: the parts joined depend on the whole text alone, not on how
it was cut into pieces.
"""

from __future__ import annotations

from ridgepoint.server.parts import CallLimit, Part
from ridgepoint.server.tool_calls.form import Schemas, ToolFormat
from ridgepoint.server.tool_calls.incoming import Incoming, Reading, until


class ToolStream:
    """`push` each piece of text, the last one with `final`. With `single` what follows the first call is left out."""

    def __init__(self, format_: ToolFormat, schemas: Schemas, *, single: bool) -> None:
        self._format, self._schemas = format_, schemas
        self._text = Incoming()
        self._limit = CallLimit(single=single)
        self._reading = self._read()

    def push(self, text: str, *, final: bool = False) -> list[Part]:
        self._text.add(text, final=final)
        parts: list[Part] = []
        while (part := next(self._reading, None)) is not None:
            if self._limit.keeps(part):
                parts.append(part)
        return parts

    def _read(self) -> Reading:
        text = self._text
        while (yield from until(text, self._format.begin)):
            if (yield from self._format.region(text, self._schemas)):
                yield from text.strip()  # between calls
