"""What a form of tool calls is: marks around them, a reader of what stands between, and a grammar of it.

Knows no HTTP and no tokenizer. Invariant: what a form's grammar allows, the form reads.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ridgepoint.server.structure import BLANKS

Schemas = Mapping[str, dict[str, Any]]  # of the arguments, by the name of the tool; each one of an object
Literal = Callable[[str], str]  # text to Lark that matches it, marks that are tokens of their own included


@dataclass(frozen=True)
class Call:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolFormat(ABC):
    """`begin` opens a region of calls, which `end` closes (None: the end of the output does). `marks` are all texts that a
    tokenizer may have as special tokens."""

    begin: str
    end: str | None
    marks: tuple[str, ...]
    id_chars = 24

    @abstractmethod
    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        """The calls in a region; None where it holds anything else."""

    def is_open(self, region: str) -> bool:
        """Whether what follows is inside a value still, where a closing mark is text: here, in a string of JSON."""
        return re.sub(r"\\.", "", region, flags=re.DOTALL).count('"') % 2 == 1

    @abstractmethod
    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        """A grammar of one call of one of the tools, or of several."""


def one_of(rule: str, schemas: Schemas) -> str:
    return " | ".join(f"{rule}_{place}" for place in range(len(schemas)))


def json_of(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**BLANKS, **schema})
