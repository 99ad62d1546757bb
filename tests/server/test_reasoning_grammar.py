"""What grammars of answers that reason allow, the reader reads: any text at all that they let through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from babbling import babble
from reasoning_tokens import CLOSING, EOS, IDS, SPECIAL_TAGS, SPECIAL_TOKENS, TEXT_TAGS, TEXT_TOKENS
from test_reasoning_reader import parts_of, reader
from test_tools import SCHEMAS, fits, form

from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.protocol import Grammar
from ridgepoint.server.parts import Call, join
from ridgepoint.server.reasoning.grammar import form_behind
from ridgepoint.server.reasoning.reader import Reasoning
from ridgepoint.server.reasoning.tags import Place
from ridgepoint.server.tool_calls.stream import ToolStream

FORM = {"type": "object", "properties": {"a": {"enum": ["x", "ä"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module", params=[False, True], ids=["text", "special"])
def tags(request: pytest.FixtureRequest) -> tuple[bool, Grammars]:
    """Whether tags are special tokens, and grammars over that vocabulary."""
    tokens = SPECIAL_TOKENS if request.param else TEXT_TOKENS
    return request.param, Grammars(lambda: tokens, len(tokens.pieces), [EOS])


def within(place: Place, *, special: bool) -> str | None:
    return form_behind(Reasoning(SPECIAL_TAGS if special else TEXT_TAGS, place))


def any_answer(grammars: Grammars, grammar: Grammar, seed: int) -> list[int]:
    return babble(grammars, grammar, seed, num_ids=len(TEXT_TOKENS.pieces), stops=[EOS], often=IDS[CLOSING])


FORMS: list[tuple[str, str, set[str] | None]] = [
    ("json_schema", json.dumps(FORM), None),
    ("regex", "[ab]{2}", {"aa", "ab", "ba", "bb"}),
    ("lark", 'start: thought | "no"\nthought: "yes"', {"yes", "no"}),  # names of rules are the form's own
]


@pytest.mark.parametrize(("kind", "text", "language"), FORMS)
@pytest.mark.parametrize("place", ["before", "inside"])
def test_forms(tags: tuple[bool, Grammars], place: Place, kind: Any, text: str, language: set[str] | None) -> None:
    special, grammars = tags
    grammar = Grammar(kind=kind, text=text, param="form", within=within(place, special=special))
    reasoned = 0
    for seed in range(30):
        answer = join(parts_of(any_answer(grammars, grammar, seed), reader(place, special=special)))
        if language is None:
            assert json.loads(answer.content)["a"] in ("x", "ä")
        else:
            assert answer.content in language
        reasoned += bool(answer.reasoning)
    assert reasoned and (place == "inside" or reasoned < 30)


@pytest.mark.parametrize("name", ["hermes", "glm", "qwen coder"])
@pytest.mark.parametrize("place", ["before", "inside"])
def test_calls(tags: tuple[bool, Grammars], place: Place, name: str) -> None:
    special, grammars = tags
    lark = form(name).lark(SCHEMAS, json.dumps, many=False)
    grammar = Grammar(kind="lark", text=lark, param="tools", within=within(place, special=special))
    reasoned = 0
    for seed in range(8):
        answer = join(parts_of(any_answer(grammars, grammar, seed), reader(place, special=special)))
        called = join(ToolStream(form(name), SCHEMAS, single=False).push(answer.content, final=True))
        assert called.content == "" and [type(call) for call in called.calls] == [Call] and fits(called.calls[0])
        reasoned += bool(answer.reasoning)
    assert reasoned


def test_where_nothing_can_be_reasoned_the_form_is_all_there_is() -> None:
    for place in ("closed", "words"):
        assert within(place, special=False) is None  # type: ignore[arg-type]
