"""The form that a request asks its output to have, as the one grammar that the engine compiles.

`response_format` is OpenAI's, `structured_outputs` vLLM's. Checks what can be told without a compiler: that one form is asked
for, and how long it is. What is wrong inside it the engine says, with the reason.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from ridgepoint.engine.grammar import MAX_GRAMMAR_CHARS, MAX_SCHEMA_CHARS, lark_of
from ridgepoint.engine.protocol import Grammar
from ridgepoint.errors import RequestError
from ridgepoint.server.schema import GenerationFields, ResponseFormat, StructuredOutputs

_ANY_OBJECT = {"type": "object"}
# Between the tokens of JSON: a space, or a line break and its indentation. A model cannot lose itself in blanks.
BLANKS = {"x-guidance": {"whitespace_pattern": r" |\n[ \t]{0,40}"}}


async def grammar_of(request: GenerationFields) -> Grammar | None:
    """None for free text."""
    wanted, found = request.structured_outputs, None
    if request.response_format is not None:
        found = _of_format(request.response_format)
    if wanted is None:
        return found
    if found is not None:
        raise RequestError(
            "response_format and structured_outputs both ask for a form", param="structured_outputs", hint="give one"
        )
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name) is not None]
    if len(given) != 1:
        raise RequestError(
            "structured_outputs takes exactly one form, got " + (" and ".join(given) or "none"),
            param="structured_outputs", code="invalid_value", hint="json, regex, choice or grammar",
        )  # fmt: skip
    return await asyncio.to_thread(_of_structure, wanted, f"structured_outputs.{given[0]}")


def _of_format(wanted: ResponseFormat) -> Grammar | None:
    if (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise RequestError(
            f"response_format of type {wanted.type!r} {'without' if wanted.json_schema is None else 'with'} json_schema",
            param="response_format.json_schema", code="invalid_value",
        )  # fmt: skip
    if wanted.json_schema is not None:
        return schema_grammar(wanted.json_schema.schema, "response_format.json_schema")
    return schema_grammar(_ANY_OBJECT, "response_format") if wanted.type == "json_object" else None


def _of_structure(wanted: StructuredOutputs, param: str) -> Grammar:
    if wanted.json is not None:
        return schema_grammar(_parsed(wanted.json, param) if isinstance(wanted.json, str) else wanted.json, param)
    if wanted.regex is not None:
        return Grammar(kind="regex", text=_bounded(wanted.regex, param, MAX_GRAMMAR_CHARS), param=param)
    if wanted.choice is not None:
        lark = "start: " + " | ".join(json.dumps(text) for text in wanted.choice)  # Lark reads JSON's strings
        return Grammar(kind="lark", text=_bounded(lark, param, MAX_GRAMMAR_CHARS), param=param)
    assert wanted.grammar is not None
    text = _bounded(wanted.grammar, param, MAX_GRAMMAR_CHARS)
    return Grammar(kind="lark", text=lark_of(text, param), param=param)


def schema_grammar(schema: dict[str, Any], param: str) -> Grammar:
    try:
        text = msgspec.json.encode(BLANKS | schema).decode()
    except RecursionError as error:
        raise RequestError("the schema is nested too deeply", param=param, code="invalid_value") from error
    return Grammar(kind="json_schema", text=_bounded(text, param, MAX_SCHEMA_CHARS), param=param)


def _parsed(text: str, param: str) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(_bounded(text, param, MAX_SCHEMA_CHARS))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema is not valid JSON: {error}", param=param, code="invalid_json") from error
    if not isinstance(schema, dict):
        raise RequestError("the schema must be a JSON object", param=param, code="invalid_type")
    return schema


def _bounded(text: str, param: str, limit: int) -> str:
    if len(text) > limit:
        raise RequestError(f"{len(text)} characters: at most {limit} allowed", param=param, code="limit_exceeded")
    return text
