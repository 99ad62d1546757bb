"""What stands before a message's text: who writes it, in which channel, to whom.

Models write headers badly: the recipient stands behind the role or the channel, the type of the text with its mark, without
it, or not at all. Whatever has their shape is read; what cannot become a header any more is the model's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ridgepoint.server.harmony.marks import Mark

MAX_HEADER_CHARS = 256
MAX_HEADER_TOKENS = 1100  # more than those of so many characters, byte by byte
_MAX_SECTIONS = 16
_ROLE = "assistant"
_TO = r"(?:to=(?P<to>\S*))?"
_SHAPES = {
    "start": re.compile(rf"\s*(?:{_ROLE})?\s*{_TO}\s*"),
    "channel": re.compile(rf"\s*(?P<channel>(?!to=)\S+)?\s*{_TO}\s*\S*\s*"),
    "constrain": re.compile(rf"\s*(?:(?!to=)\S+)?\s*{_TO}\s*"),
}
_ENDINGS = ("", *(word[start:] for word in (_ROLE, "to=") for start in range(len(word))))  # of words that are coming


@dataclass(frozen=True, kw_only=True)
class Header:
    channel: str | None
    recipient: str | None


def read_header(sections: Sequence[tuple[Mark, str]], *, whole: bool) -> Header | None:
    """The header whose marks are each followed by a text; None where it is none, or, while it is not `whole`, where it cannot
    become one."""
    if len(sections) > _MAX_SECTIONS or sum(len(text) for _, text in sections) > MAX_HEADER_CHARS:
        return None
    fields: dict[str, str] = {}
    for place, (mark, text) in enumerate(sections, 1):
        coming = not whole and place == len(sections)
        shapes = (_SHAPES[mark].fullmatch(text + ending) for ending in (_ENDINGS if coming else ("",)))
        shape = next((one for one in shapes if one is not None), None)
        if shape is None:
            return None
        fields |= {name: value for name, value in shape.groupdict().items() if value}
    return Header(channel=fields.get("channel"), recipient=fields.get("to"))
