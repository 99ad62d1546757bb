"""schemathesis reads the served OpenAPI document and tries to break the server: every answer must be one it documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import ServerProcess, echo_server

from ridgepoint.server.openapi import openapi_document

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip


CASES = [
    (method, path, mode)
    for path, operations in openapi_document(with_keys=False)["paths"].items()
    for method in operations
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if method == "post" or mode is GenerationMode.POSITIVE  # nothing in a GET can be wrong
]


@pytest.fixture(scope="module")
def quick(tiny_folder: Path) -> Iterator[ServerProcess]:
    """A small context, because a chat without a limit fills it."""
    with echo_server(tiny_folder, echo={"max_context": 96}) as server:
        yield server


@pytest.fixture(scope="module")
def api(quick: ServerProcess) -> Any:
    return schemathesis.openapi.from_url(f"{quick.url}/openapi.json")


@pytest.mark.parametrize(
    ("method", "path", "mode"), CASES, ids=[f"{method} {path} {mode.value}" for method, path, mode in CASES]
)
def test_every_answer_is_documented(api: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method]

    @settings(
        max_examples=25, derandomize=True, deadline=None, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=30)

    check()


def test_the_served_document_is_the_one_that_is_tested(quick: ServerProcess) -> None:
    assert httpx.get(f"{quick.url}/openapi.json").json() == openapi_document(with_keys=False)
