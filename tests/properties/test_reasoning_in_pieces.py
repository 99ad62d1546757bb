"""Reasoning between tags however its text is cut into tokens: what is told of the whole text, and calls behind it too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from reasoning_tokens import CUTS, WORDS, ids_of
from test_reasoning_reader import parts_of, reader, whole
from test_tools import FORMS, SCHEMAS, form

from ridgepoint.server.parts import Part, join
from ridgepoint.server.reasoning.tags import Place
from ridgepoint.server.tool_calls.stream import ToolStream

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
SCRAPS = [*WORDS, "<think>", "</think>", "\n", " ", "<", "</think", "[/THINK]"]
ANSWERS = st.lists(st.sampled_from(SCRAPS) | TEXT, max_size=12).map("".join)
PLACES: st.SearchStrategy[Place] = st.sampled_from(["before", "inside", "closed", "words"])


@settings(max_examples=500, deadline=None)
@given(text=ANSWERS, place=PLACES)
def test_any_cut_tells_what_the_whole_text_tells(text: str, place: Place) -> None:
    for words in CUTS:
        assert join(parts_of(ids_of(text, words), reader(place))) == whole(text, place)


@settings(max_examples=300, deadline=None)
@given(
    text=ANSWERS,
    place=PLACES,
    stops=st.lists(st.sampled_from(["\n", "Hm", "thi", "</", "🦊"]), max_size=2),
    include_stop=st.booleans(),
)
def test_stop_strings_end_what_is_said(text: str, place: Place, stops: list[str], include_stop: bool) -> None:
    answers = [
        join(parts_of(ids_of(text, words), reader(place, stops=stops, include_stop=include_stop))) for words in CUTS
    ]
    assert all(answer == answers[0] for answer in answers)
    uncut = whole(text, place)
    assert answers[0].reasoning == uncut.reasoning and uncut.content.startswith(answers[0].content)
    assert include_stop or not any(stop in answers[0].content for stop in stops)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_are_told(data: st.DataObject) -> None:
    """Bytes that are no characters too: never an error, and each token released once."""
    ids = data.draw(st.lists(st.integers(0, 256 + len(WORDS)), max_size=30))
    options: dict[str, Any] = {"special": data.draw(st.booleans()), "skip_special": data.draw(st.booleans())}
    parts_of(ids, reader(data.draw(PLACES), **options))


@settings(max_examples=200, deadline=None)
@given(thought=ANSWERS, name=st.sampled_from(sorted(FORMS)), single=st.booleans())
def test_calls_are_read_behind_reasoning_alone(thought: str, name: str, single: bool) -> None:
    """What calls in reasoning is reasoning."""
    call = FORMS[name][1]
    text = f"{thought.replace('</think', '')} {call}</think>\n\n{call}"
    expected = join(ToolStream(form(name), SCHEMAS, single=single).push(call, final=True))
    for words in CUTS:
        stream = ToolStream(form(name), SCHEMAS, single=single)
        told: list[Part] = []
        for part in parts_of(ids_of(text, words), reader("inside")):
            told += stream.push(part) if isinstance(part, str) else [part]
        answer = join([*told, *stream.push("", final=True)])
        assert (answer.content, answer.calls) == (expected.content, expected.calls) and call in answer.reasoning
