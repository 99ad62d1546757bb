"""The tokens of an answer that may reason between tags to what it tells: reasoning, then words.

Tags are found in the bytes of the tokens, so it makes no difference whether one is a token, several, or shares one with other
text. Reasoning stands once, at the beginning; a tag that comes later is words. Without a closing tag all that follows the
opening one is reasoning. Line breaks beside a tag belong to it. Invariants: each token is released once; all text is told but
tags and what belongs to them, and blanks before the opening one; parts joined do not depend on how text was cut into tokens.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace

from ridgepoint.engine.text import Released, TextRules, TextStream, TokenBytes
from ridgepoint.server.parts import Part, Thought, Told
from ridgepoint.server.reasoning.tags import Place, Tags
from ridgepoint.server.tool_calls.incoming import overlap


@dataclass(frozen=True)
class Reasoning:
    """How to read one request's answers: between which tags they reason, and where they go on."""

    tags: Tags
    place: Place


class ReasoningReader:
    """`push` each token, then `finish` once (not after a stop). Stop strings are looked for in words alone."""

    def __init__(self, reasoning: Reasoning, tokens: TokenBytes, rules: TextRules = TextRules()) -> None:
        self.num_reasoning = 0
        tags = reasoning.tags
        self._opening, self._closing = tags.opening.encode(), tags.closing.encode()
        self._place = reasoning.place
        self._tokens = replace(tokens, special_ids=tokens.special_ids - {*tags.special.values()})
        self._hidden = self._tokens.special_ids if rules.skip_special else frozenset[int]()
        self._rules = rules
        self._num_tokens = 0
        self._text = TextStream(self._tokens, rules)
        self._unsaid: list[int] = []  # tokens of an answer of which it is not known yet whether it reasons
        self._held = b""  # what may be of a tag, or belong to one
        self._begins: list[int] = []  # where tokens begin in it, of those that begin there
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # of reasoning
        self._has_reasoned = False
        self._parts: list[Part] = []
        self._starts: list[int] = []
        self._stop: str | None = None

    def push(self, token_id: int) -> Told:
        self._num_tokens += 1
        piece = b"" if token_id in self._hidden else self._tokens.of(token_id)
        match self._place:
            case "before":
                self._unsaid.append(token_id)
                self._look(piece)
            case "inside":
                if piece:
                    self._begins.append(len(self._held))
                else:
                    self.num_reasoning += 1
                self._think(piece)
            case "closed":
                self._skip_breaks(piece)
            case "words":
                self._say(self._text.push(token_id))
        return self._take()

    def finish(self, *, cut: bool) -> Told:
        """Nothing more will come. What began like a tag is told as it was written."""
        if self._place == "before":
            self._say_all()
        if self._place == "inside":
            self._reason(self._held, final=True)
            self.num_reasoning += len(self._begins)
        elif self._place == "words" and self._stop is None:
            self._say(self._text.finish())
        return self._take()

    def _take(self) -> Told:
        told = Told(parts=tuple(self._parts), token_starts=tuple(self._starts), stop=self._stop)
        self._parts, self._starts = [], []
        return told

    # ---------------------------------------------------------------- a token's text, by where it stands

    def _look(self, piece: bytes) -> None:
        """Before an opening tag, or anything else that is no blank."""
        self._held = (self._held + piece).lstrip()
        if self._held.startswith(self._opening):
            self._starts += [0] * (len(self._unsaid) - 1)
            behind, self._held = self._held[len(self._opening) :], b""
            self._place = "inside"
            self._begins = [0] if behind else []
            self._think(behind)
        elif not self._opening.startswith(self._held):
            self._say_all()

    def _think(self, piece: bytes) -> None:
        """In reasoning: tell of it what no tag can make its own any more."""
        self._held += piece
        thought, closing, behind = self._held.partition(self._closing)
        if closing:
            self._reason(thought.rstrip(b"\n"), final=True)
            self.num_reasoning += sum(begin < len(thought) for begin in self._begins)
            self._place = "closed"
            self._skip_breaks(behind)
            return
        self._starts.append(0)
        sure = thought[: len(thought) - overlap(thought, self._closing)].rstrip(b"\n")
        if sure:
            self._reason(sure, final=False)
            self._held = self._held[len(sure) :]
            held = [begin - len(sure) for begin in self._begins if begin >= len(sure)]
            self.num_reasoning += len(self._begins) - len(held)
            self._begins = held

    def _skip_breaks(self, piece: bytes) -> None:
        """Behind the closing tag, up to the first words."""
        words = piece.lstrip(b"\n")
        if not words:
            self._starts.append(0)
            return
        self._place = "words"
        self._text = TextStream(self._tokens, self._rules.behind(self._num_tokens - 1))
        self._say(self._text.push_bytes(words))

    # ---------------------------------------------------------------- what is told

    def _reason(self, text: bytes, *, final: bool) -> None:
        if not self._has_reasoned:
            text = text.lstrip(b"\n")
            self._has_reasoned = bool(text)
        thought = self._utf8.decode(text, final)
        if thought:
            self._parts.append(Thought(thought))

    def _say(self, released: Released) -> None:
        if released.text:
            self._parts.append(released.text)
        self._starts += released.token_starts
        self._stop = released.stop

    def _say_all(self) -> None:
        """An answer without reasoning."""
        self._place = "words"
        for token_id in self._unsaid:
            if self._stop is None:
                self._say(self._text.push(token_id))
