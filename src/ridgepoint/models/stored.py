"""How each piece of a checkpoint is stored: the tensors behind it, their shapes and types, and its matrices as codes.

Decides the form from the config's scheme and the headers alone, so that a checkpoint is checked, and what it will run on
is known, before a byte of data is read. Quantised matrices are always output-major, stacked experts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ridgepoint.catalog.families import Piece
from ridgepoint.catalog.families.storage import Compressed, Fp8Blocks, Mxfp4, Scheme, Storage
from ridgepoint.errors import CheckpointError
from ridgepoint.models import codes as coded
from ridgepoint.models.codes import Codes, Kind, num_groups
from ridgepoint.models.safetensors_file import SafetensorsFile

Files = Mapping[str, SafetensorsFile]
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
SCALE_DTYPES = ("F32", "BF16", "F16")
MXFP4_BLOCK = 32
Packing = Literal["plain", "bytes", "int32", "fp4 pairs", "gpt-oss blocks", "fp8 blocks"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One piece as it is stored. For `plain` only `tensor` and `shape` mean something.

    `matrices` is None for a single matrix. `group` counts the inputs, `group_rows` the outputs that share a scale.
    """

    packing: Packing
    tensor: str
    shape: tuple[int, ...]
    weight: str = ""
    scale: str = ""
    kind: Kind = "int8"
    matrices: int | None = None
    outputs: int = 0
    inputs: int = 0
    group: int = 0
    group_rows: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Every stored tensor of the piece, the one with the weights first."""
        if self.packing == "plain":
            return (self.tensor,)
        return (self.weight, self.scale, *([f"{self.tensor}_shape"] if self.packing == "int32" else []))


def form_of(files: Files, storage: Storage | None, piece: Piece) -> Form:
    """How `piece` is stored. A tensor that is not there has the form it would be looked for in."""
    name, shape = piece.tensor, piece.shape
    plain = Form(packing="plain", tensor=name, shape=shape)
    if storage is None or len(shape) < 2:
        return plain
    *stack, outputs, inputs = shape
    if piece.layout == "transposed":
        outputs, inputs = inputs, outputs
    matrix = replace(plain, matrices=stack[0] if stack else None, outputs=outputs, inputs=inputs)
    if isinstance(storage, Fp8Blocks) and _dtype(files, name) == "F8_E4M3":
        return replace(
            matrix, packing="fp8 blocks", weight=name, scale=f"{name}_scale_inv", kind="fp8", group=storage.columns,
            group_rows=storage.rows,
        )  # fmt: skip
    if isinstance(storage, Mxfp4) and stack and f"{name}_blocks" in files:
        if inputs % MXFP4_BLOCK:
            raise CheckpointError(f"tensor {name!r}: MXFP4 needs rows of a multiple of {MXFP4_BLOCK}, got {inputs}")
        return replace(
            matrix, packing="gpt-oss blocks", weight=f"{name}_blocks", scale=f"{name}_scales", kind="fp4",
            group=MXFP4_BLOCK,
        )  # fmt: skip
    if isinstance(storage, Compressed):
        return _compressed_form(files, storage, matrix)
    return plain


def _compressed_form(files: Files, storage: Compressed, matrix: Form) -> Form:
    name, inputs = matrix.tensor, matrix.inputs
    packed = _dtype(files, f"{name}_packed")
    if packed is None and _dtype(files, name) != "I8":
        return matrix
    ints = [scheme for scheme in storage.schemes if scheme.kind == "int"]
    packing: Packing
    if packed == "U8":
        packing, fitting = "fp4 pairs", [scheme for scheme in storage.schemes if scheme.kind == "float"]
    elif packed is None:
        packing, fitting = "bytes", [scheme for scheme in ints if scheme.bits == 8]
    else:
        width = files[f"{name}_packed"].entries[f"{name}_packed"].shape[-1:]
        packing, fitting = "int32", [scheme for scheme in ints if width == (-(-inputs * scheme.bits // 32),)]
    scheme = _choose(files, fitting, name, inputs)
    kind: Kind = "fp4" if scheme.kind == "float" else "int4" if scheme.bits == 4 else "int8"
    weight = name if packing == "bytes" else f"{name}_packed"
    return replace(matrix, packing=packing, weight=weight, scale=f"{name}_scale", kind=kind, group=scheme.group)


def _choose(files: Files, schemes: list[Scheme], name: str, inputs: int) -> Scheme:
    """The scheme that gives a row as many scales as are stored."""
    file = files.get(f"{name}_scale")
    stored = None if file is None else file.entries[f"{name}_scale"].shape[-1:]
    for scheme in schemes:
        if stored is None or stored == (num_groups(inputs, scheme.group),):
            return scheme
    raise CheckpointError(
        f"tensor {name!r}: {list(stored or ())} scales for a row of {inputs} inputs fit no scheme of config_groups"
    )


def _dtype(files: Files, name: str) -> str | None:
    file = files.get(name)
    return None if file is None else file.entries[name].dtype


def expected(form: Form) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Name, shape and allowed types of every stored tensor of a form."""
    if form.packing == "plain":
        yield form.tensor, form.shape, PLAIN_DTYPES
        return
    stack = () if form.matrices is None else (form.matrices,)
    o, i, groups = form.outputs, form.inputs, num_groups(form.inputs, form.group)
    weights: dict[str, tuple[tuple[int, ...], str]] = {
        "bytes": ((o, i), "I8"),
        "int32": ((o, -(-i * (4 if form.kind == "int4" else 8) // 32)), "I32"),
        "fp4 pairs": ((o, -(-i // 2)), "U8"),
        "gpt-oss blocks": ((o, groups, MXFP4_BLOCK // 2), "U8"),
        "fp8 blocks": ((o, i), "F8_E4M3"),
    }
    shape, dtype = weights[form.packing]
    yield form.weight, (*stack, *shape), (dtype,)
    scale_dtypes = ("U8",) if form.kind == "fp4" else SCALE_DTYPES
    yield form.scale, (*stack, -(-o // form.group_rows), groups), scale_dtypes
    if form.packing == "int32":
        yield f"{form.tensor}_shape", (2 + len(stack),), ("I64", "I32")


def read_codes(files: Files, form: Form, index: int | None = None, device: torch.device | str = "cpu") -> Codes:
    """One matrix of a quantised form, spread out on `device`: `index` counts a stack's matrices."""
    weight, scale = (files[name].tensor(name) for name in (form.weight, form.scale))
    if index is not None:
        weight, scale = weight[index], scale[index]
    weight, scale = weight.to(device), scale.to(device)  # as stored: the fewest bytes to move
    if form.packing == "int32":
        _check_shape(files, form)
        unpacked = coded.from_int32(weight, 4 if form.kind == "int4" else 8, form.inputs)
    elif form.packing in ("fp4 pairs", "gpt-oss blocks"):
        unpacked = coded.from_nibbles(weight).flatten(1)[:, : form.inputs]
    else:
        unpacked = weight.view(torch.uint8) if form.kind == "fp8" else weight
    scales_ON = coded.e8m0_values(scale) if form.kind == "fp4" else scale.float()
    if form.group_rows > 1:
        scales_ON = scales_ON.repeat_interleave(form.group_rows, 0)[: form.outputs]
    return Codes(kind=form.kind, group=form.group, codes_OI=unpacked, scales_ON=scales_ON)


def _check_shape(files: Files, form: Form) -> None:
    """`<weight>_shape` restates what the config says."""
    name = f"{form.tensor}_shape"
    said = files[name].tensor(name).tolist()
    stack = [] if form.matrices is None else [form.matrices]
    if said != [*stack, form.outputs, form.inputs]:
        raise CheckpointError(
            f"{files[name].path}: tensor {name!r} says {said}; the config asks for {[*stack, form.outputs, form.inputs]}"
        )


def output_rows(matrix_OX: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The rows of an output-major matrix (weights, codes or scales) that a piece's region takes; always a view."""
    if piece.every is not None:
        first, step = piece.every
        matrix_OX = matrix_OX[first::step]
    if piece.layout == "heads":
        assert piece.take is not None
        heads, start, stop = piece.take
        return matrix_OX.unflatten(0, (heads, -1))[:, start:stop]
    return matrix_OX
