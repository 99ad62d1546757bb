"""What grammars of harmony allow, the reader reads: any text at all that they let through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from babbling import babble
from harmony_tokens import MARKS, SPECIAL, TOKENS, ids_of
from test_harmony_reader import PROMPT
from test_tools import SCHEMAS, fits

from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.protocol import Grammar
from ridgepoint.errors import RequestError
from ridgepoint.server.harmony.grammar import call_lark, form_within
from ridgepoint.server.harmony.marks import Marks
from ridgepoint.server.harmony.reader import Harmony, HarmonyReader, Place
from ridgepoint.server.parts import Part, join

STOPS = [SPECIAL.index("<|return|>"), SPECIAL.index("<|call|>")]
END = SPECIAL.index("<|end|>")
FORM = {"type": "object", "properties": {"a": {"enum": ["x", "ä"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(lambda: TOKENS, len(TOKENS.pieces), STOPS)


def any_answer(grammars: Grammars, grammar: Grammar, seed: int) -> list[int]:
    return babble(grammars, grammar, seed, num_ids=len(TOKENS.pieces), stops=STOPS, often=END)


def parts_in(ids: list[int], prompt: str) -> list[Part]:
    reader = HarmonyReader(Harmony(MARKS, frozenset(SCHEMAS)), TOKENS, ids_of(prompt))
    return [part for one in ids for part in reader.push(one).parts] + list(reader.finish(cut=False).parts)


PLACES: list[tuple[Place, str]] = [("header", PROMPT), ("between", "<|start|>user<|message|>hi<|end|>")]


@pytest.mark.parametrize(("place", "prompt"), PLACES)
def test_calls(grammars: Grammars, place: Place, prompt: str) -> None:
    grammar = Grammar(kind="lark", text=call_lark(MARKS, place, SCHEMAS), param="tools")
    reasoned = said = 0
    for seed in range(80):
        answer = join(parts_in(any_answer(grammars, grammar, seed), prompt))
        (call,) = answer.calls
        assert fits(call)
        reasoned += bool(answer.reasoning)
        said += bool(answer.content)
    assert reasoned and said


FORMS: list[tuple[str, str, set[str] | None]] = [
    ("json_schema", json.dumps(FORM), None),
    ("regex", "[ab]{2}", {"aa", "ab", "ba", "bb"}),
    ("lark", 'start: thought | "no"\nthought: "yes"', {"yes", "no"}),  # names of rules are the form's own
]


@pytest.mark.parametrize(("kind", "text", "language"), FORMS)
@pytest.mark.parametrize(("place", "prompt"), PLACES)
def test_forms(grammars: Grammars, place: Place, prompt: str, kind: Any, text: str, language: set[str] | None) -> None:
    grammar = Grammar(kind=kind, text=text, param="form", within=form_within(MARKS, place, "form"))
    reasoned = 0
    for seed in range(30):
        answer = join(parts_in(any_answer(grammars, grammar, seed), prompt))
        assert answer.calls == [] and (
            json.loads(answer.content)["a"] in "xä" if language is None else answer.content in language
        )
        reasoned += bool(answer.reasoning)
    assert reasoned


@pytest.mark.parametrize(("kind", "text"), [("lark", "start: @form"), ("regex", "a(")])
def test_a_form_that_cannot_be_is_refused_before_any_reasoning(grammars: Grammars, kind: Any, text: str) -> None:
    grammar = Grammar(kind=kind, text=text, param="form", within=form_within(MARKS, "header", "form"))
    with pytest.raises(RequestError, match="cannot be used") as caught:
        grammars.compile(grammar).result()
    assert caught.value.param == "form"


def test_a_vocabulary_may_lack_marks_that_are_not_needed(grammars: Grammars) -> None:
    marks = Marks({mark: MARKS.ids[mark] for mark in ("start", "channel", "message", "end")}, {}, MARKS.spelled)
    assert marks.stop_ids == ()
    texts = [call_lark(marks, "header", SCHEMAS), form_within(marks, "header", "form") or ""]
    grammar = Grammar(kind="regex", text="a", param="form", within=texts[1])
    assert join(parts_in(any_answer(grammars, grammar, 0), PROMPT)).content == "a"
    ids = any_answer(grammars, Grammar(kind="lark", text=texts[0], param="tools"), 1)
    assert fits(join(parts_in(ids, PROMPT)).calls[0])


def test_elsewhere_forms_and_calls_are_refused() -> None:
    assert form_within(MARKS, "words", "form") is None  # all of it is the form
    for place in ("other", "words"):
        with pytest.raises(RequestError, match="inside a message"):
            call_lark(MARKS, place, SCHEMAS)
    with pytest.raises(RequestError, match="inside a message"):
        form_within(MARKS, "other", "form")
