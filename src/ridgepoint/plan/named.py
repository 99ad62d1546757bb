"""Names to facts: a model by catalogue name or config.json, hardware by catalogue name or TOML file. Decides nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.drafting import Drafter, own_module
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """`source` says where the shape came from."""

    name: str
    spec: ModelSpec
    source: str


def named_model(name: str) -> NamedModel:
    """A catalogue model, or the `config.json` at this path (the file itself or the folder that holds it)."""
    from ridgepoint.catalog.models import catalog_model

    path = Path(name)
    if name.endswith(".json") or path.is_dir():
        file = path / "config.json" if path.is_dir() else path
        return NamedModel(name=file.parent.name or file.stem, spec=_from_config(file), source=str(file))
    model = catalog_model(name)
    return NamedModel(name=model.name, spec=model.spec, source=f"catalogue: {model.source} ({model.date})")


def _from_config(file: Path) -> ModelSpec:
    from ridgepoint.catalog.families import spec_from_config

    if not file.is_file():
        raise ConfigError(
            f"no model configuration at {file}", hint="give a config.json, a folder that holds one, or a catalogue name"
        )
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and text that is not UTF-8
        raise ConfigError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a JSON object, got {type(config).__name__}")
    spec: ModelSpec = spec_from_config(config)
    return spec


def named_drafter(name: str, model: NamedModel) -> Drafter | None:
    """`ngram` drafts from the text and has no weights; `mtp` is the model's own module; anything else is a model."""
    if name == "ngram":
        return None
    if name == "mtp":
        return own_module(model.name, model.spec)
    drafter = named_model(name)
    if drafter.spec.vocab_size != model.spec.vocab_size:
        raise ConfigError(
            f"{drafter.name} cannot draft for {model.name}: vocabularies of {drafter.spec.vocab_size:,} and {model.spec.vocab_size:,}",
            hint="a drafter of the same family, mtp, or ngram",
        )
    return Drafter(name=drafter.name, spec=drafter.spec)
