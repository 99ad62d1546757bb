"""A vocabulary made by hand that has tags of reasoning, as text or as special tokens, and text as tokens of any cut."""

from __future__ import annotations

from collections.abc import Sequence

from ridgepoint.engine.text import TokenBytes
from ridgepoint.server.reasoning.tags import Tags

OPENING, CLOSING = "<think>", "</think>"
WHOLE = [OPENING, CLOSING, "Hm", "\n\n", "🦊"]
PARTS = ["\n<", "thi", "nk>\n", ".</", "think>\n\nSo", "\n\n\n", "nk></", "think", ">"]
WORDS = [*WHOLE, *PARTS]
EOS = 0
FIRST_WORD = 257
PIECES = (b"</s>", *(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS))
IDS = {word: FIRST_WORD + place for place, word in enumerate(WORDS)}
TEXT_TOKENS = TokenBytes(pieces=PIECES, special_ids=frozenset({EOS}))
SPECIAL_TOKENS = TokenBytes(pieces=PIECES, special_ids=frozenset({EOS, IDS[OPENING], IDS[CLOSING]}))
TEXT_TAGS = Tags(OPENING, CLOSING, {})
SPECIAL_TAGS = Tags(OPENING, CLOSING, {OPENING: IDS[OPENING], CLOSING: IDS[CLOSING]})
CUTS: list[list[str]] = [WHOLE, PARTS, []]


def ids_of(text: str, words: Sequence[str] = WHOLE) -> list[int]:
    """By these words where they stand, else by bytes."""
    ids: list[int] = []
    while text:
        word = next((one for one in words if text.startswith(one)), None)
        ids += [IDS[word]] if word is not None else [1 + byte for byte in text[0].encode()]
        text = text[len(word or text[0]) :]
    return ids
