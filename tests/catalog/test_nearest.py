"""Names that are not known bring the names that were meant."""

from __future__ import annotations

import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import catalog_model
from ridgepoint.catalog.nearest import nearest
from ridgepoint.errors import CatalogError


@pytest.mark.parametrize(
    ("find", "typed", "meant"),
    [
        (accelerator, "GB200 NVL72", "gb200-nvl72"),
        (accelerator, "gb200-nvl27", "gb200-nvl72"),
        (accelerator, "NVIDIA H200", "h200"),
        (catalog_model, "openai/gpt-oss-120b", "gpt-oss-120b"),
        (catalog_model, "deepseekv3", "deepseek-v3"),
        (catalog_model, "MiniMaxAI/MiniMax-M2", "minimax-m2"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_one_that_was_meant_first(find, typed: str, meant: str) -> None:
    with pytest.raises(CatalogError) as refused:
        find(typed)
    assert refused.value.hint is not None and refused.value.hint.startswith(f"try {meant},")


def test_what_resembles_nothing_gets_the_beginning_of_the_list() -> None:
    assert nearest("zzzz", ["b", "a", "c"], limit=2) == ["a", "b"]
    assert nearest("", ["b", "a"]) == ["a", "b"]
