"""Token ids to text, one token at a time: what may be shown now, what must wait, and where a stop string ends it.

Decides when bytes are certainly a character (or certainly not: then they become one U+FFFD per malformed run, as
`bytes.decode(errors="replace")` would make of the whole) and how much text to hold back because a stop string may have
begun in it. Knows token bytes only (`TokenBytes`), no tokenizer. Invariant: the released pieces joined depend on the
token ids alone, never on how they were grouped into steps.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class TokenBytes:
    """The bytes each token id stands for, and which ids are special (left out of text unless asked for).

    An id past the end (a vocabulary padded by the checkpoint) stands for no bytes.
    """

    pieces: tuple[bytes, ...]
    special_ids: frozenset[int]

    def of(self, token_id: int) -> bytes:
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else b""

    def text(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The whole text of `token_ids` at once; malformed UTF-8 becomes U+FFFD."""
        wanted = (token_id for token_id in token_ids if not (skip_special and token_id in self.special_ids))
        return b"".join(self.of(token_id) for token_id in wanted).decode("utf-8", errors="replace")


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What of an output is told, and which strings end it.

    Stop strings completed within the first `min_tokens` tokens are ordinary text. With `include_stop` the stop string
    stays at the end of the text.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    skip_special: bool = True

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ValueError("stops: an empty string would end any text")

    def behind(self, num_tokens: int) -> TextRules:
        """Those of a text that begins behind so many tokens of the output."""
        return replace(self, min_tokens=max(0, self.min_tokens - num_tokens))


@dataclass(frozen=True, kw_only=True)
class Released:
    """Text that is final, and the offsets (in characters of the whole output) at which the tokens it completes begin."""

    text: str
    token_starts: tuple[int, ...]
    stop: str | None = None  # the stop string that ended the output; nothing may be pushed afterwards


class TextStream:
    """The text of one output as its tokens arrive: `push` each id, then `finish` once (not after a stop).

    Of several stop strings the one *completed* first counts; of two completed by the same character, the longer. A
    token is released with the first character it contributes to; tokens wholly behind the cut are never released.
    """

    def __init__(self, tokens: TokenBytes, rules: TextRules = TextRules()) -> None:
        self._tokens = tokens
        self._rules = rules
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, not released
        self._released_chars = 0
        self._unchecked_chars = 0  # held[: this] cannot be the end of a stop string
        self._starts: deque[int] = deque()  # of tokens not yet released
        self._num_tokens = 0

    def push(self, token_id: int) -> Released:
        hidden = self._rules.skip_special and token_id in self._tokens.special_ids
        return self.push_bytes(b"" if hidden else self._tokens.of(token_id))

    def push_bytes(self, piece: bytes) -> Released:
        """A token of which this much is text."""
        self._num_tokens += 1
        self._starts.append(self._released_chars + len(self._held))
        return self._take(self._utf8.decode(piece), final=False)

    def finish(self) -> Released:
        """What was held back: nothing more will come, so half a character is certainly malformed."""
        return self._take(self._utf8.decode(b"", final=True), final=True)

    def _take(self, text: str, *, final: bool) -> Released:
        self._held += text
        if self._num_tokens <= self._rules.min_tokens:
            self._unchecked_chars = len(self._held)
        found = self._find_stop()
        if found is not None:
            start, end, stop = found
            return self._release(end if self._rules.include_stop else start, every_token=False, stop=stop)
        if final:
            return self._release(len(self._held), every_token=True)
        return self._release(len(self._held) - self._hold_back(), every_token=False)

    def _find_stop(self) -> tuple[int, int, str] | None:
        """(start, end, stop) in the held text of the stop string that is completed first."""
        best: tuple[int, int, str] | None = None
        for stop in self._rules.stops:
            start = self._held.find(stop, max(0, self._unchecked_chars + 1 - len(stop)))
            if start >= 0 and (best is None or (start + len(stop), start) < (best[1], best[0])):
                best = (start, start + len(stop), stop)
        if best is None:
            self._unchecked_chars = len(self._held)
        return best

    def _hold_back(self) -> int:
        """Characters at the end of the held text that may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._rules.stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._rules.stops):
                return length
        return 0

    def _release(self, num_chars: int, *, every_token: bool, stop: str | None = None) -> Released:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        self._released_chars += num_chars
        self._unchecked_chars = max(0, self._unchecked_chars - num_chars)
        starts: list[int] = []
        while self._starts and (every_token or self._starts[0] < self._released_chars):
            starts.append(self._starts.popleft())
        return Released(text=text, token_starts=tuple(starts), stop=stop)
