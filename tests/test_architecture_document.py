"""ARCHITECTURE.md names code as `module:attribute`; every such name must resolve, so the document cannot drift."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "ARCHITECTURE.md"
NAME = re.compile(r"`([a-z_][a-z0-9_.]*):([A-Za-z_][A-Za-z0-9_.]*)`")


def _names() -> list[tuple[str, str]]:
    return sorted(set(NAME.findall(DOCUMENT.read_text())))


@pytest.mark.parametrize(("module", "attribute"), _names(), ids=lambda value: value)
def test_named_code_exists(module: str, attribute: str) -> None:
    target: object = importlib.import_module(f"ridgepoint.{module}")
    for part in attribute.split("."):
        annotations = getattr(target, "__annotations__", {})
        assert hasattr(target, part) or part in annotations, f"{module}:{attribute} does not exist"
        target = getattr(target, part, None)


def test_every_life_is_written_down() -> None:
    text = DOCUMENT.read_text()
    for life in ("life of a request", "life of a plan", "life of a training step"):
        section = text.lower().partition(life)[2].partition("\n## ")[0]
        assert len(NAME.findall(section)) >= 6, f"the {life} names too little code"
