"""The tokens of an answer in harmony to what it tells: reasoning, words, and calls of tools, as they come.

`analysis` is reasoning; `final`, `commentary` to nobody and channels that nobody knows are words; what is addressed to a tool
that was offered is a call, in whatever channel. All else is told as words, as it was written: messages to others or by others,
and what has no header. Invariants: each token's text is told, but for headers that were understood or that the answer's end
cut; parts joined do not depend on how text was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ridgepoint.engine.text import Released, TextRules, TextStream, TokenBytes
from ridgepoint.server.harmony.header import MAX_HEADER_TOKENS, Header, read_header
from ridgepoint.server.harmony.marks import Mark, Marks
from ridgepoint.server.parts import Arguments, CallBegun, CallLimit, Part, Thought, Told

# Where the next token stands: before a message, in a header that says nothing yet, in words, or elsewhere.
Place = Literal["between", "header", "words", "other"]


@dataclass(frozen=True)
class Harmony:
    """How to read one request's answers: `tools` may be called, and with `single` one of them once."""

    marks: Marks
    tools: frozenset[str] = frozenset()
    single: bool = False


class HarmonyReader:
    """`push` each token, then `finish` once (not after a stop). Stop strings are looked for in words alone."""

    def __init__(
        self, harmony: Harmony, tokens: TokenBytes, prompt_ids: Sequence[int], rules: TextRules = TextRules()
    ) -> None:
        """The answer goes on where the prompt ends, be that in a header or in a message."""
        self.num_reasoning = 0
        self._harmony, self._marks = harmony, harmony.marks
        self._rules = replace(rules, stops=())  # none in the prompt
        # A mark where none belongs is spelled.
        self._tokens = replace(tokens, special_ids=tokens.special_ids - self._marks.of_id.keys())
        self._limit = CallLimit(single=harmony.single)
        self._header: list[int] | None = []  # ids since the last message ended; None within one
        self._given: list[int] = []  # what of it stands in the prompt
        self._first = 0  # tokens before the first of them
        self._kind: Callable[[str], Part] = str
        self._text = self._stream(0)
        self._parts: list[Part] = []
        self._starts: list[int] = []
        self._stop: str | None = None
        self._num_tokens = self._num_chars = 0
        self._told: set[Callable[[str], Part]] = set()  # kinds of which the answer has any
        self._begun = False  # this message has told something
        self._continue(prompt_ids)
        self._rules = rules
        self._text = self._stream(0)

    def _continue(self, prompt_ids: Sequence[int]) -> None:
        """Stand where the prompt ends."""
        start = next(
            (place for place in reversed(range(len(prompt_ids))) if self._mark(prompt_ids[place]) == "start"), None
        )
        for token_id in prompt_ids[len(prompt_ids) if start is None else start :]:
            self._read(token_id)
        if self._header:
            self._given, self._header = self._header, []
        in_call = self._header is None and self._kind is Arguments
        self._parts = [part for part in self._parts if in_call and isinstance(part, CallBegun)]
        self._starts.clear()
        self._told.clear()
        self._begun = False
        self._num_tokens = self._num_chars = self._first = self.num_reasoning = 0

    @property
    def place(self) -> Place:
        if self._header is None:
            return "words" if self._kind is str else "other"
        if not self._header and not self._given:
            return "between"
        return "header" if self._sections() == [("start", "assistant")] else "other"

    def push(self, token_id: int) -> Told:
        self._num_tokens += 1
        self._read(token_id)
        return self._take()

    def finish(self, *, cut: bool) -> Told:
        """Nothing more will come; `cut`: though more was wanted."""
        self._close(cut=cut)
        return self._take()

    def _take(self) -> Told:
        parts = tuple(part for part in self._parts if self._limit.keeps(part))
        told = Told(parts=parts, token_starts=tuple(self._starts), stop=self._stop)
        self._parts, self._starts = [], []
        return told

    def _mark(self, token_id: int) -> Mark | None:
        return self._marks.of_id.get(token_id)

    # ---------------------------------------------------------------- one token

    def _read(self, token_id: int) -> None:
        mark = self._mark(token_id)
        if mark in ("end", "call", "return"):
            self._close(cut=False)
            self._starts += [self._num_chars] * (self._stop is None)
        elif mark == "start" or (mark == "channel" and self._header is None):
            self._close(cut=False)
            self._given, self._header, self._first = [], [token_id], self._num_tokens - 1
        elif self._header is None:
            self.num_reasoning += self._kind is Thought
            self._tell(self._text.push(token_id))
        elif mark == "message":
            self._open(read_header(self._sections(), whole=True), token_id)
        else:
            self._first = self._first if self._header else self._num_tokens - 1
            self._header.append(token_id)
            if len(self._header) > MAX_HEADER_TOKENS or read_header(self._sections(), whole=False) is None:
                self._open_words()

    def _sections(self) -> list[tuple[Mark, str]]:
        """The header so far: its marks, each with the text behind it. An answer begins behind `<|start|>`."""
        found: list[tuple[Mark, bytes]] = []
        for token_id in (*self._given, *(self._header or ())):
            mark = self._mark(token_id)
            if mark is not None or not found:
                found.append((mark or "start", b""))
            if mark is None and not (self._rules.skip_special and token_id in self._tokens.special_ids):
                found[-1] = (found[-1][0], found[-1][1] + self._tokens.of(token_id))
        return [(mark, text.decode("utf-8", errors="replace")) for mark, text in found]

    # ---------------------------------------------------------------- messages

    def _open(self, header: Header | None, message_id: int) -> None:
        """Begin a message behind its header."""
        assert self._header is not None
        tool = None if header is None or header.recipient is None else self._tool_of(header.recipient)
        if header is None or (header.recipient is not None and tool is None):
            self._header.append(message_id)
            self._open_words()
            return
        if tool is not None:
            self._parts.append(CallBegun(tool))
        self._kind = Arguments if tool is not None else Thought if header.channel == "analysis" else str
        self._starts += [self._num_chars] * (len(self._header) + 1)
        self._given, self._header = [], None
        self._begun = False
        self._text = self._stream(self._num_tokens)

    def _open_words(self) -> None:
        """Take what was held as a header for the beginning of words."""
        assert self._header is not None
        written, self._given, self._header = self._header, [], None
        self._kind, self._begun = str, False
        self._text = self._stream(self._first)
        for token_id in written:
            if self._stop is None:
                self._tell(self._text.push(token_id))

    def _close(self, *, cut: bool) -> None:
        """End a message, or what was to become one."""
        if self._header is not None:
            text = "".join(text for _, text in self._sections()).strip()
            if text in ("", "assistant") or (cut and read_header(self._sections(), whole=False) is not None):
                self._starts += [self._num_chars] * len(self._header)
                self._given, self._header = [], []
                return
            self._open_words()
        if self._stop is None:
            self._tell(self._text.finish())
        if self._kind is Arguments and not self._begun and not cut:
            self._parts.append(Arguments("{}"))
        self._header = []

    def _tool_of(self, recipient: str) -> str | None:
        """The name of the offered tool that a message is addressed to."""
        names = (recipient.removeprefix("functions."), recipient)
        return next((name for name in names if name in self._harmony.tools), None)

    def _stream(self, num_before: int) -> TextStream:
        """The text of a message that begins behind so many tokens."""
        rules = self._rules if self._kind is str else replace(self._rules, stops=())
        return TextStream(self._tokens, rules.behind(num_before))

    def _tell(self, released: Released) -> None:
        self._starts += [self._num_chars] * len(released.token_starts)
        self._stop = released.stop
        if not released.text:
            return
        text = released.text
        if not self._begun and self._kind is not Arguments and self._kind in self._told:
            text = "\n" + text  # two messages of one kind
        self._begun = True
        self._told.add(self._kind)
        self._parts.append(self._kind(text))
        self._num_chars += len(text) if self._kind is str else 0
