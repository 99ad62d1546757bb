"""Between which tags a model reasons, by what its chat template's text shows, and whether a prompt ends inside them.

Knows no tokens. Only the end of a prompt is looked at: tags that somebody writes into a conversation open nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ridgepoint.engine.tokenizer import Tokenizer

# Where an answer goes on: before any reasoning, in it, right behind it, or in what is said.
Place = Literal["before", "inside", "closed", "words"]
_KNOWN = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True)
class Tags:
    """`special` has the ids of those that are special tokens."""

    opening: str
    closing: str
    special: Mapping[str, int]


def tags_of(tokenizer: Tokenizer) -> Tags | None:
    """None where the template shows none. Some templates only take past reasoning away: they name the closing tag alone."""
    template = tokenizer.chat_template
    if template is None:
        return None
    for opening, closing in _KNOWN:
        if closing in template.source:
            return Tags(opening, closing, tokenizer.special_ids_of((opening, closing)))
    return None


def place_behind(tags: Tags, prompt: str) -> Place:
    """Where an answer begins. Templates open reasoning, or put an empty one there to have none."""
    end = prompt.rstrip()
    if end.endswith(tags.opening):
        return "inside"
    return "closed" if end.endswith(tags.closing) else "before"


def place_within(tags: Tags, message: str) -> Place:
    """Where an answer goes on whose beginning is `message`."""
    text = message.lstrip()
    if not text.startswith(tags.opening):
        return "words"
    _, closing, words = text.partition(tags.closing)
    if not closing:
        return "inside"
    return "words" if words.strip("\n") else "closed"
