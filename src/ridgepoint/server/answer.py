"""Which reader turns the tokens of an answer into what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ridgepoint.engine.text import Released, TextRules, TextStream, TokenBytes
from ridgepoint.server.harmony.reader import Harmony, HarmonyReader
from ridgepoint.server.parts import Told
from ridgepoint.server.reasoning.reader import Reasoning, ReasoningReader


class AnswerReader(Protocol):
    """`push` each token, then `finish` once (not after a stop); `cut` where more was wanted. Counts tokens of reasoning."""

    num_reasoning: int

    def push(self, token_id: int) -> Told: ...
    def finish(self, *, cut: bool) -> Told: ...


class PlainReader:
    """All of it is said."""

    num_reasoning = 0

    def __init__(self, text: TextStream) -> None:
        self._text = text

    def push(self, token_id: int) -> Told:
        return _told(self._text.push(token_id))

    def finish(self, *, cut: bool) -> Told:
        return _told(self._text.finish())


def _told(released: Released) -> Told:
    parts = (released.text,) if released.text else ()
    return Told(parts=parts, token_starts=released.token_starts, stop=released.stop)


def reader(
    tokens: TokenBytes,
    prompt_ids: Sequence[int],
    rules: TextRules,
    *,
    harmony: Harmony | None,
    reasoning: Reasoning | None,
    shown_ids: frozenset[int],
) -> AnswerReader:
    """`shown_ids` are special tokens that are text all the same."""
    if harmony is not None:
        return HarmonyReader(harmony, tokens, prompt_ids, rules)
    if shown_ids:
        tokens = replace(tokens, special_ids=tokens.special_ids - shown_ids)
    if reasoning is not None:
        return ReasoningReader(reasoning, tokens, rules)
    return PlainReader(TextStream(tokens, rules))
