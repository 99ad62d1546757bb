"""However an answer's text is cut into pieces, its streamed parts joined are the answer that is told whole."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from test_tools import FORMS, SCHEMAS, form

from ridgepoint.server.parts import Joined, Part, join
from ridgepoint.server.tool_calls.stream import ToolStream

# Whatever a model may write of a form, well or badly: its marks, pieces of its calls, JSON, and anything.
SCRAPS = [
    '{"name": "weather", "arguments": {', '"city": "', '"days": 3', "}", "}}", '"}', "{}", "[", "]", ", ", "\n", " ", "\\", '\\"', "<", "</",
    "weather", "ping", "weather\n", "<function=weather>\n", "</function>", "<parameter=city>\n", "<parameter=days>", "\n</parameter>\n",
    "<arg_key>city</arg_key>\n<arg_value>", "<arg_key>days</arg_key><arg_value>", "</arg_value>\n", '<invoke name="weather">', "</invoke>",
    '<parameter name="city">', '<parameter name="days">', "[ARGS]", "ä🦊", "null",
]  # fmt: skip


def told(name: str, pieces: list[str], *, single: bool, late_end: bool) -> Joined:
    stream = ToolStream(form(name), SCHEMAS, single=single)
    parts: list[Part] = []
    for place, piece in enumerate(pieces, 1):
        parts += stream.push(piece, final=place == len(pieces) and not late_end)
    if late_end or not pieces:
        parts += stream.push("", final=True)
    return join(parts)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


@st.composite
def answers(draw: st.DrawFn, name: str) -> str:
    """Calls of a form, cut anywhere, among scraps."""
    whole, format_ = FORMS[name][1], form(name)
    scraps = [*SCRAPS, *format_.marks, format_.begin, whole]
    pieces = st.one_of(
        st.sampled_from(scraps),
        st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(
            lambda ends: whole[min(ends) : max(ends)]
        ),
        st.text(max_size=4),
    )
    return "".join(draw(st.lists(pieces, max_size=8)))


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_cut_tells_the_same(name: str, data: st.DataObject) -> None:
    text = data.draw(answers(name), "text")
    single = data.draw(st.booleans(), "single")
    whole = told(name, [text], single=single, late_end=False)
    for pieces in (list(text), cut(text, data.draw(st.lists(st.integers(0, 400), max_size=6), "places"))):
        for late_end in (False, True):
            assert told(name, pieces, single=single, late_end=late_end) == whole


ARGUMENTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"city": st.text(st.characters(exclude_categories=["Cs"]), max_size=12)},
    optional={"days": st.integers(), "strict": st.booleans(), "at": st.dictionaries(st.text(max_size=3), st.text(max_size=3))},
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(calls=st.lists(ARGUMENTS, min_size=1, max_size=3), places=st.lists(st.integers(0, 400), max_size=6))
def test_what_was_called_is_told(calls: list[dict[str, Any]], places: list[int]) -> None:
    """Any strings at all: quotes, backslashes, and the mark that would end the call."""
    texts = [json.dumps(one | {"note": "</tool_call>"}, ensure_ascii=False) for one in calls]
    text = "\n".join(f'<tool_call>\n{{"name": "weather", "arguments": {one}}}\n</tool_call>' for one in texts)
    answer = told("hermes", cut("Well. " + text + "\nDone.", places), single=False, late_end=True)
    assert [call.arguments for call in answer.calls] == texts
    assert answer.content == "Well. Done."
