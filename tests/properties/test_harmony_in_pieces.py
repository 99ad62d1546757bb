"""Harmony however its text is cut into tokens: the same answer, with nothing lost and every token accounted for."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from harmony_tokens import FIRST_BYTE, SPECIAL, WORDS, ids_of, text_of
from test_harmony_reader import parts_of

from ridgepoint.server.parts import Call, Joined, join

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
SCRAPS = [*SPECIAL, *WORDS, " to=weather", " to=functions.other", " json", "analysis", "user", " ", "a" * 150]


@settings(max_examples=400, deadline=None)
@given(
    scraps=st.lists(st.sampled_from(SCRAPS) | TEXT, max_size=14),
    stops=st.lists(st.sampled_from(["weather", "nel", "on", "🦊"]), max_size=2),
    single=st.booleans(),
    cut=st.booleans(),
)
def test_any_text_is_told_the_same(scraps: list[str], stops: list[str], single: bool, cut: bool) -> None:
    """Well written or not, whole words or single bytes."""
    text = "".join(scraps)
    options = {"stops": stops, "single": single, "cut": cut}
    by_words = join(parts_of(ids_of(text), **options))
    assert join(parts_of(ids_of(text, words=False), **options)) == by_words


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_are_told(data: st.DataObject) -> None:
    """Bytes that are no characters too: never an error, and each token released once."""
    tokens = st.integers(0, FIRST_BYTE + 255 + len(WORDS))
    ids = data.draw(st.lists(st.integers(0, FIRST_BYTE - 1) | tokens, max_size=30))
    answer = join(parts_of(ids, skip_special=False))
    told = answer.content + answer.reasoning + "".join(call.name + call.arguments for call in answer.calls)
    for word in WORDS:  # as often as it was written, but where a header was understood
        assert told.count(word) <= text_of(ids).count(word) + (word in ("{}", "weather"))


@settings(max_examples=400, deadline=None)
@given(scraps=st.lists(st.sampled_from([*SPECIAL, *SPECIAL, *WORDS, " to=weather", " ", None, None]), max_size=16))
def test_no_words_are_lost(scraps: list[str | None]) -> None:
    """Numbered ones, wherever they stand, but for those in what may be a header: before `<|message|>` or more of a header."""
    numbered = [f" no{place}." if one is None else one for place, one in enumerate(scraps)]
    answer = join(parts_of(ids_of("".join(numbered))))
    told = answer.content + answer.reasoning + "".join(call.arguments for call in answer.calls)
    for place, one in enumerate(scraps):
        behind = next((mark for mark in scraps[place:] if mark in SPECIAL), "<|end|>")
        if one is None and behind not in ("<|message|>", "<|channel|>", "<|constrain|>"):
            assert told.count(f" no{place}.") == 1


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["thought", "preamble", "final", "call by channel", "call by role"]), TEXT), max_size=5
)
HEADERS = {
    "thought": "<|channel|>analysis", "preamble": "<|channel|>commentary", "final": "<|channel|>final",
    "call by channel": "<|channel|>commentary to=functions.weather <|constrain|>json",
    "call by role": " to=functions.weather<|channel|>commentary json",
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(messages=MESSAGES, words=st.booleans())
def test_what_was_written_well_is_told(messages: list[tuple[str, str]], words: bool) -> None:
    """Any texts at all, marks that they spell included."""
    ids: list[int] = []
    for place, (kind, text) in enumerate(messages):
        ids += ids_of(("<|start|>assistant" if place else "") + HEADERS[kind] + "<|message|>", words=words)
        ids += ids_of(text + "<|end|>", words=words, plain=True) + ids_of("<|end|>")
    texts: dict[str, list[str]] = {"words": [], "thought": [], "call": []}
    for kind, text in messages:
        name = "call" if kind.startswith("call") else kind if kind == "thought" else "words"
        texts[name].append(text + "<|end|>")
    calls = [Call("weather", text) for text in texts["call"]]
    assert join(parts_of(ids)) == Joined("\n".join(texts["words"]), "\n".join(texts["thought"]), calls)
