"""What a schema allows at a path of a refused body: the values of a choice, or the words of the field's description."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import inspect

STEP = re.compile(r"\[\d*\]|[^.\[\]]+")


def hint_at(schema: type[msgspec.Struct], path: str) -> str | None:
    """For the hint of an error: the field's description if it has one, else its choices; None where there are none."""
    found = [inspect.type_info(schema)]
    for step in STEP.findall(path):
        found = [inner for each in found for inner in _inside(each, step)]
    layers = [layer for each in found for layer in _layers(each)]
    words = [
        layer.extra_json_schema["description"]
        for layer in layers
        if isinstance(layer, inspect.Metadata) and layer.extra_json_schema and "description" in layer.extra_json_schema
    ]
    values = [value for layer in layers if isinstance(layer, inspect.LiteralType) for value in layer.values]
    return words[0] if words else "allowed: " + ", ".join(map(repr, values)) if values else None


def _layers(kind: inspect.Type) -> Iterator[inspect.Type]:
    """`kind`, what its metadata is about, and the members of a union."""
    yield kind
    if isinstance(kind, inspect.Metadata):
        yield from _layers(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _layers(member)


def _inside(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    for plain in _layers(kind):
        if step.startswith("[") and isinstance(plain, inspect.ListType):
            yield plain.item_type
        elif isinstance(plain, inspect.StructType):
            yield from (field.type for field in plain.fields if field.encode_name == step)
