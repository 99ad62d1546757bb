"""Whatever schema is asked for, what a model of random weights says is JSON that satisfies it, at any temperature."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from test_constraint import TOKENS, host, tiny_decoder

from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.llm import LLM
from ridgepoint.sched.params import SamplingParams
from ridgepoint.server.structure import schema_grammar

NAMES = st.text("abcdefgh", min_size=1, max_size=3)
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-20, 20).flatmap(
        lambda low: st.integers(0, 500).map(lambda more: {"type": "integer", "minimum": low, "maximum": low + more})
    ),
    st.integers(0, 3).map(lambda length: {"type": "string", "minLength": length, "maxLength": length + 2}),
    st.lists(st.none() | st.booleans() | st.integers(-9, 99) | NAMES, min_size=1, max_size=4).map(
        lambda x: {"enum": x}
    ),
    NAMES.map(lambda name: {"const": name}),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}[0-9]$"}),
)


def record(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    required = st.lists(st.sampled_from(sorted(fields)), unique=True) if fields else st.just([])
    return required.map(
        lambda names: {"type": "object", "properties": fields, "required": names, "additionalProperties": False}
    )


def bounded(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.dictionaries(NAMES, inner, max_size=3).flatmap(record),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 1}
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    )


SCHEMAS = st.recursive(LEAVES, bounded, max_leaves=6)


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """By the specification of the keywords above."""
    if "anyOf" in schema:
        return any(satisfies(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string" if "pattern" in schema:
            return (
                isinstance(value, str)
                and 2 <= len(value) <= 4
                and set(value[:-1]) <= set("abc")
                and value[-1].isdigit()
            )
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(satisfies(one, schema["items"]) for one in value)
            )
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= value.keys() <= known.keys()
                and all(satisfies(one, known[name]) for name, one in value.items())
            )
    raise AssertionError(schema)


@pytest.fixture(scope="module")
def core() -> EngineCore:
    torch.set_num_threads(1)
    return host(tiny_decoder(), num_blocks=800, max_context=1000)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_is_said_satisfies_the_schema(core: EngineCore, schema: dict[str, Any], seed: int) -> None:
    params = [SamplingParams(max_tokens=900, temperature=heat, seed=seed) for heat in (0.0, 1.0, 2.0)]
    grammar = schema_grammar(schema, "response_format")
    for done in LLM(core).generate([[5, 6, 7]] * 3, params, grammar=grammar):
        text = TOKENS.text(done.token_ids)
        assert done.finish_reason == "stop", (schema, text)
        assert satisfies(json.loads(text), schema), (schema, text)
