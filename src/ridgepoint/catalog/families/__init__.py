"""Maps from a family's `config.json` and tensor names to `ModelSpec` and the decoder's parameters. Never layers.

`spec_from_config` serves the planner, `read_checkpoint_config` the loader. A `model_type` that is not listed here is
refused by name; so is every fact of a listed family that is not implemented.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ridgepoint.catalog.families.common import Family
from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.storage import Storage, read_storage
from ridgepoint.catalog.families.weights import Piece
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.errors import CheckpointError

# model_type of config.json -> module of this package, which is also the spec's `family`
FAMILIES: dict[str, str] = {
    "llama": "llama",
    "qwen3": "qwen3",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "olmoe": "olmoe",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "gpt_oss": "gpt_oss",
    "glm4_moe": "glm4_moe",
    "minimax_m2": "minimax_m2",
    "phimoe": "phimoe",
    "granitemoe": "granitemoe",
}


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """All that `config.json` says: the spec, where each tensor goes, how numbers are stored, which tensors to leave."""

    spec: ModelSpec
    pieces: tuple[Piece, ...]
    storage: Storage | None
    extra_patterns: tuple[str, ...]


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face `config.json`, without naming a tensor for every expert."""
    return _read(config)[1]


def read_checkpoint_config(config: dict[str, Any]) -> CheckpointConfig:
    """Everything a loader needs to know, or a `CheckpointError` naming the first fact that is not implemented."""
    family, spec, storage = _read(config)
    return CheckpointConfig(
        spec=spec, pieces=tuple(family.pieces(spec)), storage=storage, extra_patterns=family.extra(spec)
    )


def _read(config: dict[str, Any]) -> tuple[Family, ModelSpec, Storage | None]:
    family = _family(config)
    reader = ConfigReader(config, family.name)
    storage = read_storage(reader)
    spec = family.read(reader)
    reader.finish()
    return family, spec, storage


def pieces_of(spec: ModelSpec) -> tuple[Piece, ...]:
    """The weight map of a spec: what an exporter writes."""
    return tuple(_module(spec.family).pieces(spec))


def _family(config: dict[str, Any]) -> Family:
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json holds {type(config).__name__}, not an object")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"model type {model_type!r} is not supported; allowed: {', '.join(FAMILIES)}")
    return _module(FAMILIES[model_type])


def _module(name: str) -> Family:
    family: Family = import_module(f"ridgepoint.catalog.families.{name}").FAMILY
    return family
