"""Which shapes a model can have at all: upper bounds on what a `ModelSpec` may claim, far above anything published.

A `config.json` is somebody else's word. Lists as long as it claims are made from its numbers, and a planner or loader that believed
ten million experts would be busy for minutes or out of memory before anything is refused. Every bound is an order of magnitude or
more above the largest published model, and below what this package can hold. Knows no hardware: what fits is for a plan to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from ridgepoint.errors import CatalogError

MOST_LAYERS = 1_000  # published: 126
MOST_WIDTH = 1 << 20  # of anything a matrix has for a side; published: 53,248
MOST_HEADS = 4_096  # published: 128
MOST_EXPERTS = 16_384  # of one layer; published: 2,048
MOST_EXPERTS_IN_ALL = 1 << 20  # of all layers: a checkpoint names each of them; published: 82,432
MOST_VOCABULARY = 1 << 24  # published: 262,208
MOST_CONTEXT = 1 << 28  # published: 10,485,760

# Counts of a layer's parts; every other whole number in them is a width.
_COUNTS = {
    "num_heads": MOST_HEADS, "num_kv_heads": MOST_HEADS, "num_experts": MOST_EXPERTS, "top_k": MOST_EXPERTS, "num_groups": MOST_EXPERTS,
    "topk_groups": MOST_EXPERTS, "original_max_context": MOST_CONTEXT, "window": MOST_CONTEXT, "kv_from_layer": MOST_LAYERS,
    "num_params": MOST_WIDTH**2, "state_bytes_per_seq": MOST_WIDTH**2, "conv_bytes_per_seq": MOST_WIDTH**2,
}  # fmt: skip
# Keys of a config.json; no other number in one is larger than its context.
_CONFIG = {
    "num_hidden_layers": MOST_LAYERS, "vocab_size": MOST_VOCABULARY, "hidden_size": MOST_WIDTH, "num_experts": MOST_EXPERTS,
    "num_local_experts": MOST_EXPERTS, "n_routed_experts": MOST_EXPERTS,
}  # fmt: skip


def check_at_most(what: str, got: int, most: int) -> None:
    if got > most:
        raise CatalogError(
            f"{what} {_number(got)} is implausible; allowed: at most {most:,}",
            hint="no published model comes near it: is the file what its publisher wrote?",
        )


def check_config_number(family: str, key: str, got: int) -> None:
    """A whole number of a `config.json`, before anything is made of it: a list of so many layers, or a float."""
    check_at_most(f"{family}: {key}", got, _CONFIG.get(key, MOST_CONTEXT))


def check_layers(what: str, layers: Iterable[Any]) -> None:
    """Every whole number stated anywhere in `layers`, and the experts of all of them together. Layers are mostly one object many
    times over, so each is looked at once."""
    seen: dict[int, Any] = {}
    experts = 0
    for layer in layers:
        seen.setdefault(id(layer), layer)
        experts += getattr(layer.ffn, "num_experts", 0)
    for layer in seen.values():
        _check_numbers(what, layer)
    check_at_most(f"{what}: number of experts in all layers", experts, MOST_EXPERTS_IN_ALL)


def _check_numbers(what: str, part: Any) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            _check_numbers(what, value)
        elif isinstance(value, int):
            check_at_most(f"{what}: {field.name}", value, _COUNTS.get(field.name, MOST_WIDTH))


def _number(value: int) -> str:
    """Nobody reads thirty digits."""
    return f"{value:,}" if value < 10**30 else f"of {len(str(value))} digits"
