"""Catalogue models by name: published shape facts (`data/models.toml`) as the ModelSpec a loader builds from a checkpoint.

A catalogue spec serves arithmetic (shapes, kinds of layers, routing); a checkpoint's own config.json is the authority for
running it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from ridgepoint.catalog.nearest import nearest
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.catalog.tables import spec_from_table
from ridgepoint.errors import CatalogError


@dataclass(frozen=True, kw_only=True)
class CatalogModel:
    """A spec with what its publisher says about it. Headline counts are claims, not computed here."""

    name: str
    spec: ModelSpec
    headline_total_params: float | None
    headline_active_params: float | None
    source: str
    date: str
    notes: str


@lru_cache(maxsize=1)
def catalog_models() -> dict[str, CatalogModel]:
    """Every model of the shipped catalogue by name."""
    data = tomllib.loads(resources.files("ridgepoint.catalog").joinpath("data/models.toml").read_text())
    return {
        name: CatalogModel(
            name=name, spec=spec_from_table(name, row), headline_total_params=row.get("headline_total_params"),
            headline_active_params=row.get("headline_active_params"), source=row["source"], date=row["date"], notes=row.get("notes", ""),
        )
        for name, row in data.items()
    }  # fmt: skip


ALIASES = {
    "minimax-m2": "minimax-m2.5", "minimax-m2.1": "minimax-m2.5", "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3",
    "glm-4.5": "glm-4.6", "glm-4.7": "glm-4.6", "30b-a3b": "qwen3-30b-a3b", "llama-3.3-70b": "llama-3.1-70b",
    "kimi-k2.5": "kimi-k2", "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
}  # fmt: skip


def catalog_model(name: str) -> CatalogModel:
    models = catalog_models()
    ident = ALIASES.get(name.lower(), name.lower())
    if ident in models:
        return models[ident]
    near = ", ".join(nearest(name, {**models, **ALIASES}))
    raise CatalogError(f"unknown model {name!r}", hint=f"try {near}, or a path to a config.json")


def model_spec(name: str) -> ModelSpec:
    """The spec of a catalogue model by name or alias."""
    return catalog_model(name).spec
