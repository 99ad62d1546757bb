"""The special tokens that frame harmony's messages, and which checkpoints write them.

Ids alone are marks. Text that spells one, which anybody may write, is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ridgepoint.engine.tokenizer import Tokenizer
from ridgepoint.server.spelled import names_of

Mark = Literal["start", "channel", "message", "end", "constrain", "call", "return"]
_NEEDED: tuple[Mark, ...] = ("start", "channel", "message", "end")
_MARKS: tuple[Mark, ...] = (*_NEEDED, "constrain", "call", "return")


@dataclass(frozen=True)
class Marks:
    """`ids` has the needed ones, and of the others those that the vocabulary has."""

    ids: Mapping[Mark, int]
    of_id: Mapping[int, Mark]
    spelled: re.Pattern[str]  # any special token, as text

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer, whatever the checkpoint's files say."""
        return tuple(self.ids[mark] for mark in ("call", "return") if mark in self.ids)


def marks_of(tokenizer: Tokenizer) -> Marks | None:
    """None for a model that does not write harmony: its template shows none, or its tokenizer cannot tell marks from text."""
    template = tokenizer.chat_template
    if template is None or not all(f"<|{mark}|>" in template.source for mark in _NEEDED):
        return None
    spelled = {tokenizer.tokens.of(token_id): token_id for token_id in tokenizer.tokens.special_ids}
    ids = {mark: spelled[name] for mark in _MARKS if (name := f"<|{mark}|>".encode()) in spelled}
    if not set(_NEEDED) <= ids.keys():
        return None
    return Marks(ids, {token_id: mark for mark, token_id in ids.items()}, names_of(list(spelled)))
