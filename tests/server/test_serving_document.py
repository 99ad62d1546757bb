"""docs/serving.md mentions every field, limit, path and metric there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_engine import ToyEngine

from ridgepoint.cli.serve import serve
from ridgepoint.server.metrics import Metrics
from ridgepoint.server.openapi import openapi_document
from ridgepoint.server.schema import ChatRequest, CompletionRequest

WORDS = set(re.findall(r"[\w/{}.-]+", (Path(__file__).parents[2] / "docs" / "serving.md").read_text()))


@pytest.mark.parametrize("schema", [CompletionRequest, ChatRequest])
def test_every_request_field_is_documented(schema: type) -> None:
    names = {name if name != "stream_options" else "stream_options.include_usage" for name in schema.__struct_fields__}
    assert names <= WORDS


def test_every_path_is_documented() -> None:
    assert set(openapi_document(with_keys=True)["paths"]) <= WORDS


def test_every_limit_is_documented() -> None:
    named = ("max_body", "max_prompts", "max_seq", "max_logprobs", "max_stops", "timeout", "keep_alive", "drain")
    options = {name for name in serve.__annotations__ if any(part in name for part in named)}
    assert {"--" + name.replace("_", "-") for name in options} <= WORDS


def test_every_metric_is_documented() -> None:
    metrics = Metrics("m")
    metrics.watch(ToyEngine())
    for line in metrics.scrape().decode().splitlines():
        if line.startswith("# TYPE ridgepoint:"):
            assert line.split()[2].removeprefix("ridgepoint:") in WORDS, line
