"""Reads rotary settings in every spelling in use: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from ridgepoint.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary spec and `softmax_scale`, DeepSeek's extra factor on attention logits (1.0 elsewhere)."""

    spec: RopeSpec
    softmax_scale: float


def read_rope(
    c: ConfigReader,
    head_dim: int,
    *,
    theta: float | None = None,
    partial: float = 1.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Rope:
    """`head_dim` is what a partial factor multiplies; `theta` and `partial` stand where the family has a default;
    `rotary_dim`, where the family states the width itself, must agree with a partial factor if there is one."""
    values = _merged(c)
    kind = values.pop("rope_type", "default")
    base = _number(c, values, "rope_theta", theta)
    stated = values.pop("partial_rotary_factor", None)
    width = int(head_dim * (partial if stated is None else float(stated)))
    if rotary_dim is not None:
        if stated is not None and width != rotary_dim:
            raise CheckpointError(
                f"{c.family} config: rotary_dim {rotary_dim} and partial_rotary_factor {stated} disagree"
            )
        width = rotary_dim
    if width < 2 or width % 2 or width > head_dim:
        raise c.refuse("rotary width", width, f"an even number from 2 to {head_dim}")
    if kind not in _SCALINGS:
        raise CheckpointError(f"rope type {kind!r} is not supported; allowed: {', '.join(_SCALINGS)}")
    scaling, softmax_scale = _SCALINGS[kind](c, values, width)
    if values:
        raise CheckpointError(f"{c.family} config: keys of rope type {kind!r} not understood: {values!r:.200}")
    spec = RopeSpec(theta=base, rotary_dim=width, interleaved=interleaved, scaling=scaling)
    return Rope(spec=spec, softmax_scale=softmax_scale)


def _merged(c: ConfigReader) -> dict[str, Any]:
    """All spellings in one dict; two that disagree are an error."""
    merged: dict[str, Any] = {}
    top = {key: c.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for source in (c.get("rope_parameters", {}), c.get("rope_scaling", {}), top):
        if not isinstance(source, dict):
            raise c.refuse("rope_parameters", source, "an object")
        for key, value in source.items():
            key = "rope_type" if key == "type" else key
            value = {"su": "longrope"}.get(value, value) if key == "rope_type" and isinstance(value, str) else value
            if value is None:
                continue
            if key in merged and merged[key] != value:
                raise CheckpointError(f"{c.family} config: {key} is stated twice, as {merged[key]!r} and as {value!r}")
            merged[key] = value
    return merged


def _number(c: ConfigReader, values: dict[str, Any], key: str, default: float | None = None) -> float:
    value = values.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise c.refuse(key, value, "a number")
    return float(value)


def _original_context(c: ConfigReader, values: dict[str, Any]) -> int:
    own = c.get("original_max_position_embeddings")
    stated = values.pop("original_max_position_embeddings", own)
    value = c.get("max_position_embeddings") if stated is None else stated
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise c.refuse("original_max_position_embeddings", value, "a positive integer")
    return value


def _default(c: ConfigReader, values: dict[str, Any], width: int) -> tuple[RopeScaling | None, float]:
    return None, 1.0


def _linear(c: ConfigReader, values: dict[str, Any], width: int) -> tuple[RopeScaling | None, float]:
    return LinearScaling(factor=_number(c, values, "factor")), 1.0


def _llama3(c: ConfigReader, values: dict[str, Any], width: int) -> tuple[RopeScaling | None, float]:
    return Llama3Scaling(
        factor=_number(c, values, "factor"),
        low_freq_factor=_number(c, values, "low_freq_factor"),
        high_freq_factor=_number(c, values, "high_freq_factor"),
        original_max_context=_original_context(c, values),
    ), 1.0


def _yarn(c: ConfigReader, values: dict[str, Any], width: int) -> tuple[RopeScaling | None, float]:
    original = _original_context(c, values)
    factor = _number(c, values, "factor", c.integer("max_position_embeddings") / original)
    mscale, all_dim = values.pop("mscale", None), values.pop("mscale_all_dim", None)
    if mscale and all_dim:
        magnitude = _yarn_magnitude(factor, float(mscale)) / _yarn_magnitude(factor, float(all_dim))
    else:
        magnitude = _yarn_magnitude(factor, 1.0)
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise c.refuse("truncate", truncate, "true or false")
    scaling = YarnScaling(
        factor=factor,
        original_max_context=original,
        beta_fast=_number(c, values, "beta_fast", 32.0),
        beta_slow=_number(c, values, "beta_slow", 1.0),
        attention_factor=_number(c, values, "attention_factor", magnitude),
        truncate=truncate,
    )
    return scaling, _yarn_magnitude(factor, float(all_dim)) ** 2 if all_dim else 1.0


def _yarn_magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(c: ConfigReader, values: dict[str, Any], width: int) -> tuple[RopeScaling | None, float]:
    original = _original_context(c, values)
    factor = _number(c, values, "factor", c.integer("max_position_embeddings") / original)
    even = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    even = _number(c, values, "attention_factor", even)
    lists = []
    for key in ("short_factor", "long_factor"):
        value = values.pop(key, None)
        if not isinstance(value, list) or len(value) != width // 2:
            raise c.refuse(key, value, f"a list of {width // 2} numbers")
        lists.append(tuple(float(v) for v in value))
    return LongRopeScaling(
        short_factors=lists[0],
        long_factors=lists[1],
        short_magnitude=_number(c, values, "short_mscale", even),
        long_magnitude=_number(c, values, "long_mscale", even),
        original_max_context=original,
    ), 1.0


_SCALINGS: dict[str, Callable[[ConfigReader, dict[str, Any], int], tuple[RopeScaling | None, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
