"""A vocabulary made by hand that has harmony's special tokens, and text as tokens of any cut."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ridgepoint.engine.text import TokenBytes
from ridgepoint.server.harmony.marks import Marks
from ridgepoint.server.spelled import names_of

NAMES = ("start", "channel", "message", "end", "constrain", "call", "return")
SPECIAL = [f"<|{name}|>" for name in NAMES]
OTHER_SPECIAL = len(SPECIAL)  # <|reserved|>
FIRST_BYTE = OTHER_SPECIAL + 1
WORDS = [
    "analysis",
    "final",
    "commentary",
    "assistant",
    " to=functions.",
    "weather",
    "json",
    "<|",
    "|>",
    "channel",
    "message",
    "{}",
    "🦊",
]
TOKENS = TokenBytes(
    pieces=(
        *(name.encode() for name in SPECIAL), b"<|reserved|>", *(bytes([byte]) for byte in range(256)),
        *(word.encode() for word in WORDS),
    ),
    special_ids=frozenset(range(FIRST_BYTE)),
)  # fmt: skip
MARKS = Marks(
    {name: place for place, name in enumerate(NAMES)},
    dict(enumerate(NAMES)),
    names_of([name.encode() for name in SPECIAL]),
)  # type: ignore[arg-type]
_PIECE = re.compile("|".join(map(re.escape, SPECIAL)))


def ids_of(text: str, *, words: bool = True, plain: bool = False) -> list[int]:
    """Special tokens as themselves unless all is `plain`; the rest by words where there are such, else by bytes."""
    ids: list[int] = []
    place = 0
    while place < len(text):
        found = None if plain else _PIECE.match(text, place)
        word = next((one for one in WORDS if words and text.startswith(one, place)), None)
        if found is not None:
            ids.append(SPECIAL.index(found[0]))
            place = found.end()
        elif word is not None:
            ids.append(FIRST_BYTE + 256 + WORDS.index(word))
            place += len(word)
        else:
            ids += [FIRST_BYTE + byte for byte in text[place].encode()]
            place += 1
    return ids


def text_of(ids: Sequence[int]) -> str:
    return TOKENS.text(ids, skip_special=False)
