"""What a form of tool calls is: marks around them, a reader of what stands between, and a grammar of it.

Knows no HTTP and no tokenizer. Invariant: what a form's grammar allows, the form reads.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from typing import Any

from ridgepoint.server.structure import BLANKS
from ridgepoint.server.tool_calls.incoming import Incoming, Search

Schemas = Mapping[str, dict[str, Any]]  # of the arguments, by the name of the tool; each one of an object
Literal = Callable[[str], str]  # text to Lark that matches it, marks that are tokens of their own included


class ToolFormat(ABC):
    """`begin` opens a region of calls, which `end` closes (None: the end of the output does). `marks` are all texts that a
    tokenizer may have as special tokens."""

    begin: str
    end: str | None
    marks: tuple[str, ...]
    id_chars = 24

    @abstractmethod
    def region(self, text: Incoming, schemas: Schemas) -> Search:
        """What stands behind `begin`, the mark that ends it included: calls, each begun as soon as its tool is known, and as
        text what is none. Whether any call was begun."""

    @abstractmethod
    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        """A grammar of one call of one of the tools, or of several."""

    def is_open(self, region: str) -> bool:
        """Whether what follows is inside a value still, where a closing mark is text: here, in a string of JSON."""
        return re.sub(r"\\.", "", region, flags=re.DOTALL).count('"') % 2 == 1

    def ended(self, text: Incoming) -> tuple[str, str] | None:
        """The held rest of a region and the mark that ends it; no mark where the output ends, None where neither has come."""
        while self.end is not None and (place := text.held.find(self.end, text.searched)) >= 0:
            if not self.is_open(text.held[:place]):
                return text.held[:place], self.end
            text.searched = place + len(self.end)
        return (text.held, "") if text.final else None

    def rest(self, text: Incoming) -> Generator[None, None, tuple[str, str]]:
        """Take the rest of a region and the mark that ends it."""
        while (found := self.ended(text)) is None:
            yield None
        text.take(len(found[0]) + len(found[1]))
        return found


def one_of(rule: str, schemas: Schemas) -> str:
    return " | ".join(f"{rule}_{place}" for place in range(len(schemas)))


def json_of(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**BLANKS, **schema})
