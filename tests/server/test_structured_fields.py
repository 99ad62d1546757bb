"""What requests may ask of the output's form, and the one grammar that reaches the engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ridgepoint.engine.grammar import MAX_GRAMMAR_CHARS, MAX_SCHEMA_CHARS
from ridgepoint.engine.protocol import Grammar

SCHEMA = {"type": "object", "properties": {"b": {"type": "boolean"}, "a": {"type": "integer"}}}


def json_schema(schema: Any = SCHEMA, **changes: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, **changes}}


def sent(serve: Any, path: str = "chat", **body: Any) -> list[Grammar | None]:
    """The grammars that the engine is handed."""

    async def run() -> list[Grammar | None]:
        async with serve() as served:
            response = await getattr(served, path)(max_tokens=2, **body)
            assert response.status_code == 200, response.text
            return [submit.grammar for submit in served.engine.submitted]

    return asyncio.run(run())


def refused(serve: Any, **body: Any) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with serve() as served:
            response = await served.chat(**body)
            assert response.status_code == 400 and served.engine.submitted == []
            error: dict[str, Any] = response.json()["error"]
            return error

    return asyncio.run(run())


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_a_schema_reaches_the_engine_in_its_order(serve, path: str) -> None:
    (grammar,) = sent(serve, path, response_format=json_schema(strict=True, description="x"))
    assert grammar is not None and grammar.kind == "json_schema"
    schema = json.loads(grammar.text)
    assert {key: schema[key] for key in SCHEMA} == SCHEMA
    assert list(schema["properties"]) == ["b", "a"]
    assert "whitespace_pattern" in schema["x-guidance"]
    own = json_schema({"x-guidance": {"whitespace_flexible": False}})
    (grammar,) = sent(serve, path, response_format=own)
    assert grammar is not None and json.loads(grammar.text) == own["json_schema"]["schema"]


def test_every_choice_has_the_form(serve) -> None:
    grammars = sent(serve, response_format={"type": "json_object"}, n=3)
    assert len(grammars) == 3 and len(set(grammars)) == 1 and grammars[0] is not None
    assert json.loads(grammars[0].text)["type"] == "object"
    assert len(sent(serve, "complete", prompt=["a", "b"], structured_outputs={"regex": "a"})) == 2


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        ({"regex": "a|b"}, "regex", "a|b"),
        ({"choice": ["yes", 'n"o', "é\n"]}, "lark", 'start: "yes" | "n\\"o" | "\\u00e9\\n"'),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
    ],
)
def test_structured_outputs(serve, asked: dict[str, Any], kind: str, text: str) -> None:
    (grammar,) = sent(serve, structured_outputs=asked)
    assert grammar is not None and (grammar.kind, grammar.text) == (kind, text)
    assert grammar.param == f"structured_outputs.{next(iter(asked))}"


def test_a_schema_may_come_as_text_and_a_grammar_as_gbnf(serve) -> None:
    as_text, as_object = (
        sent(serve, structured_outputs={"json": value})[0] for value in (json.dumps(SCHEMA), SCHEMA)
    )  # fmt: skip
    assert as_text == as_object
    (grammar,) = sent(serve, structured_outputs={"grammar": 'root ::= "a" | "b"'})
    assert grammar is not None and "start:" in grammar.text


@pytest.mark.parametrize("format_", [None, {"type": "text"}])
def test_free_text_has_no_grammar(serve, format_: Any) -> None:
    assert sent(serve, response_format=format_) == [None]
    assert sent(serve, response_format=format_, structured_outputs={"regex": "a"}) != [None]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "without"),
        ({"response_format": {"type": "text"} | {"json_schema": {"name": "a", "schema": {}}}}, None, "with json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, None, "missing"),
        ({"response_format": json_schema(True)}, "response_format.json_schema.schema", "expected object"),
        ({"response_format": json_schema(name="a b")}, "response_format.json_schema.name", "letters"),
        ({"response_format": json_schema(schemata={})}, "response_format.json_schema.schemata", "unknown"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one form, got none"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "got json and regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "length"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "must be a JSON object"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not valid JSON"),
        ({"structured_outputs": {"json": '{"a":' * 5000}}, "structured_outputs.json", "not valid JSON"),
        ({"structured_outputs": {"grammar": "what"}}, "structured_outputs.grammar", "neither Lark nor GBNF"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "unknown"),
        ({"structured_outputs": {"regex": "a" * (MAX_GRAMMAR_CHARS + 1)}}, "structured_outputs.regex", "at most 16384"),
        ({"structured_outputs": {"choice": ["a" * MAX_GRAMMAR_CHARS]}}, "structured_outputs.choice", "at most 16384"),
        ({"response_format": json_schema({"title": "a" * MAX_SCHEMA_CHARS})}, None, "at most 131072"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs", "both ask for a form",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(serve, body: dict[str, Any], param: str | None, says: str) -> None:
    error = refused(serve, **body)
    assert says in error["message"]
    assert param is None or error["param"] == param
