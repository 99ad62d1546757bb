"""Which tensors of a checkpoint are matrices to quantise, in the order of the layers, and how each is read as float32.

Embeddings, norms, routers, biases and a shared expert's one-row gate always stay as they are: they are small, looked up,
or decide a choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ridgepoint.catalog.families import CheckpointConfig, Piece
from ridgepoint.errors import CheckpointError, ConfigError
from ridgepoint.models.source import Source
from ridgepoint.models.stored import Form, form_of, read_codes
from ridgepoint.quantize.formats import Format, format_of

_MATRIX = re.compile(
    r"head\.weight|layers\.\d+\..*(?:(?:qkv|o|q_a|q_b|kv_a|gate_up|down)\.weight|w_uk_HNC|w_uv_HVC|w_gate_up_E2FD|w_down_EDF)"
)
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A tensor to quantise: `pieces` are the regions of the decoder's parameters it fills, `fmt` what it becomes."""

    tensor: str
    pieces: tuple[Piece, ...]
    form: Form
    fmt: Format
    matrices: int | None  # of a stack
    outputs: int
    inputs: int

    @property
    def layer(self) -> int | None:
        found = _LAYER.match(self.pieces[0].param)
        return None if found is None else int(found[1])

    @property
    def num_weights(self) -> int:
        return (self.matrices or 1) * self.outputs * self.inputs


def matrices_of(source: Source, config: CheckpointConfig, fmt: Format, exclude: Sequence[str]) -> list[Matrix]:
    """By layer, what stands outside the layers last. A pattern of `exclude` that names nothing is an error."""
    by_tensor: dict[str, list[Piece]] = {}
    for piece in config.pieces:
        if len(piece.shape) >= 2 and _MATRIX.fullmatch(piece.param):
            by_tensor.setdefault(piece.tensor, []).append(piece)
    for pattern in exclude:
        if not any(_named(pattern, name) for name in by_tensor):
            raise ConfigError(
                f"--exclude {pattern!r} names no matrix of this checkpoint", hint=f"one is {next(iter(by_tensor))!r}"
            )
    found = []
    for name, pieces in by_tensor.items():
        first = pieces[0]
        *stack, outputs, inputs = first.shape
        if first.layout == "transposed":
            outputs, inputs = inputs, outputs
        one = format_of(fmt, name, family=config.spec.family, stacked=bool(stack))
        if one is None or any(_named(pattern, name) for pattern in exclude):
            continue
        found.append(
            Matrix(
                tensor=name, pieces=tuple(pieces), form=form_of(source.files, config.storage, first), fmt=one,
                matrices=stack[0] if stack else None, outputs=outputs, inputs=inputs,
            )
        )  # fmt: skip
    return sorted(found, key=lambda matrix: matrix.layer if matrix.layer is not None else config.spec.num_layers)


def _named(pattern: str, tensor: str) -> bool:
    return fnmatchcase(tensor, pattern) or fnmatchcase(tensor.removesuffix(".weight"), pattern)


def read_matrix(source: Source, matrix: Matrix, index: int | None) -> torch.Tensor:
    """One matrix as float32 [outputs, inputs], whatever it is stored in."""
    if matrix.form.packing != "plain":
        return read_codes(source.files, matrix.form, index).dense()
    stored = source.files[matrix.tensor].tensor(matrix.tensor)
    weight = stored if index is None else stored[index]
    weight_OI = (weight.T if matrix.pieces[0].layout == "transposed" else weight).float().contiguous()
    if not bool(torch.isfinite(weight_OI).all()):
        raise CheckpointError(f"tensor {matrix.tensor!r} holds numbers that are not finite, which no format can keep")
    return weight_OI
