"""A checkpoint to one of fewer bits, matrix by matrix: never the whole model in memory, never a half-written folder.

Decides the order and what is reported. How a matrix becomes codes is the method's business: rounding needs the matrix
alone, an activation-aware method also what flows into it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ridgepoint.catalog.families import CheckpointConfig, read_checkpoint_config
from ridgepoint.errors import CheckpointError
from ridgepoint.models.checkpoint import check_tensors
from ridgepoint.models.codes import Codes
from ridgepoint.models.source import Source, open_source
from ridgepoint.models.stored import form_of
from ridgepoint.quantize.folder import CheckpointFolder
from ridgepoint.quantize.formats import BITS, HEAD, Format, quantization_config
from ridgepoint.quantize.matrices import Matrix, matrices_of, read_matrix
from ridgepoint.quantize.rounding import round_to_nearest, stored_tensors
from ridgepoint.units import si

SCHEMA = "ridgepoint.quantize/1"
Progress = Callable[[int, int], None]  # (weights done, weights in all)


class Method(Protocol):
    """Makes codes. Matrices come layer by layer, in the order in which a step reaches them."""

    name: str

    def codes(self, matrix: Matrix, index: int | None, weight_OI: torch.Tensor) -> Codes: ...
    def report(self) -> dict[str, Any]: ...


class RoundToNearest:
    name = "rtn"

    def codes(self, matrix: Matrix, index: int | None, weight_OI: torch.Tensor) -> Codes:
        return round_to_nearest(weight_OI, matrix.fmt)

    def report(self) -> dict[str, Any]:
        return {}


@dataclass
class Tally:
    """Squares of errors and of weights, by role of the matrix."""

    squares: dict[str, list[float]] = field(default_factory=dict)

    def add(self, role: str, weight_OI: torch.Tensor, codes: Codes) -> None:
        sums = self.squares.setdefault(role, [0.0, 0.0])
        sums[0] += float((codes.dense() - weight_OI).double().square().sum())
        sums[1] += float(weight_OI.double().square().sum())

    def relative_rms(self) -> dict[str, float]:
        return {role: (error / total) ** 0.5 if total else 0.0 for role, (error, total) in self.squares.items()}


def convert(
    folder: Path,
    target: Path,
    fmt: Format,
    *,
    make_method: Callable[[Source, CheckpointConfig], Method] = lambda source, config: RoundToNearest(),
    exclude: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
    shard_bytes: int | None = None,
) -> dict[str, Any]:
    """Write the checkpoint in `folder` to `target` in `fmt` and return the report."""
    began = time.perf_counter()
    source = open_source(folder)
    config = read_checkpoint_config(source.config)
    check_tensors(source, config)
    matrices = matrices_of(source, config, fmt, exclude)
    if not matrices:
        raise CheckpointError(f"{folder}: no matrix is left to write in {fmt.name}")
    method = make_method(source, config)
    tally, total, done = Tally(), sum(matrix.num_weights for matrix in matrices), 0
    with CheckpointFolder(target, **({} if shard_bytes is None else {"shard_bytes": shard_bytes})) as out:
        _check_room(target, _estimate_bytes(source, matrices))
        for matrix in matrices:
            many = []
            for index in range(matrix.matrices) if matrix.matrices is not None else (None,):
                weight_OI = read_matrix(source, matrix, index)
                many.append(method.codes(matrix, index, weight_OI))
                tally.add(role_of(matrix), weight_OI, many[-1])
                done += weight_OI.numel()
                progress(done, total)
            out.add(stored_tensors(matrix.tensor, many, matrix.fmt, stacked=matrix.matrices is not None))
            for name in matrix.form.names:
                source.files[name].release(name)
        _add_plain(source, config, matrices, out)
        copied = out.copy_companions(folder)
        written = {key: value for key, value in source.config.items() if key not in ("quantization_config", "compression_config")}  # fmt: skip
        with_head = any(matrix.tensor == HEAD for matrix in matrices)
        written["quantization_config"] = quantization_config(
            fmt, config.spec.family, _kept(config, matrices), with_head
        )
        out.commit(written)
    before = sum(entry.stop - entry.start for file in set(source.files.values()) for entry in file.entries.values())
    return {
        "schema": SCHEMA,
        "source": str(folder),
        "target": str(target),
        "format": fmt.name,
        "method": method.name,
        "matrices": sum(matrix.matrices or 1 for matrix in matrices),
        "weights": total,
        "source_bytes": before,
        "target_bytes": out.num_bytes,
        "bits_per_quantised_weight": sum(_bits(matrix) for matrix in matrices) / total,
        "relative_rms_error": tally.relative_rms(),
        **method.report(),
        "copied": copied,
        "notes": notes_of(source, config, fmt, matrices),
        "seconds": time.perf_counter() - began,
    }


def role_of(matrix: Matrix) -> str:
    """The last words of the parameter it fills: `mixer.qkv`, `experts.w_down_EDF`."""
    words = matrix.pieces[0].param.removesuffix(".weight").split(".")
    return ".".join(words[-2:])


def notes_of(source: Source, config: CheckpointConfig, fmt: Format, matrices: Sequence[Matrix]) -> list[str]:
    """What the reader should know before shipping the folder."""
    notes = []
    if config.storage is not None:
        notes.append("the source is quantised itself: its loss and this one's add up")
    ragged = [m for m in matrices if m.fmt.kind in ("int8", "int4", "fp4") and m.fmt.group and m.inputs % m.fmt.group]
    if ragged:
        notes.append(
            f"{len(ragged)} tensors have rows of {ragged[0].inputs} inputs, no multiple of {ragged[0].fmt.group}: "
            "their last group is short, which ridgepoint reads and compressed-tensors does not"
        )
    if any(m.matrices is not None and m.fmt.packing != "gpt-oss blocks" for m in matrices):
        notes.append("experts stored as one stack stay one: other engines expect them one by one in this format")
    if fmt.kind == "fp4" and config.spec.family == "gpt_oss":
        notes.append("only experts are written in mxfp4, as gpt-oss has it")
    return notes


def _kept(config: CheckpointConfig, matrices: Sequence[Matrix]) -> list[str]:
    """Modules with a matrix that is left plain (an embedding is no such module)."""
    quantised = {matrix.tensor for matrix in matrices}
    kept = [
        piece.tensor.removesuffix(".weight")
        for piece in config.pieces
        if len(piece.shape) == 2 and piece.param != "embed.weight" and piece.tensor not in quantised
    ]
    if config.spec.tied_embeddings:
        kept.append(HEAD.removesuffix(".weight"))
    return list(dict.fromkeys(kept))


def _add_plain(source: Source, config: CheckpointConfig, matrices: Sequence[Matrix], out: CheckpointFolder) -> None:
    """Everything that is not quantised, as it was; what was quantised in the source and is excluded now becomes plain."""
    taken = {name for matrix in matrices for name in matrix.form.names}
    for piece in config.pieces:
        form = form_of(source.files, config.storage, piece)
        if form.packing == "plain" or form.weight in taken:
            continue
        taken |= set(form.names)
        whole = Matrix(
            tensor=piece.tensor, pieces=(piece,), form=form, fmt=matrices[0].fmt, matrices=form.matrices,
            outputs=form.outputs, inputs=form.inputs,
        )  # fmt: skip
        dense = [read_matrix(source, whole, i) for i in (range(form.matrices) if form.matrices else (None,))]
        plain = dense[0] if form.matrices is None else torch.stack(dense)
        out.add({piece.tensor: (plain.transpose(-1, -2) if piece.layout == "transposed" else plain).bfloat16()})
    for name, file in source.files.items():
        if name not in taken:
            out.add({name: file.tensor(name)})


def _bits(matrix: Matrix) -> float:
    """Bits of a matrix with its scales, as stored."""
    fmt = matrix.fmt
    groups = -(-matrix.inputs // fmt.group) if fmt.group else 1
    scale_bits = {"int8": 16, "int4": 16, "fp4": 8, "fp8": 32}[fmt.kind]
    scales = -(-matrix.outputs // fmt.group_rows) * groups * (matrix.matrices or 1)
    return matrix.num_weights * BITS[fmt.kind] + scales * scale_bits


def _estimate_bytes(source: Source, matrices: Sequence[Matrix]) -> int:
    quantised = {name for matrix in matrices for name in matrix.form.names}
    plain = [file.entries[name] for name, file in source.files.items() if name not in quantised]
    return int(sum(map(_bits, matrices)) / 8) + sum(entry.stop - entry.start for entry in plain)


def _check_room(target: Path, wanted_bytes: int) -> None:
    """A disk that is sure to fill is refused before the first hour, not after it."""
    disk = os.statvfs(target.absolute().parent)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < wanted_bytes:
        raise CheckpointError(f"{target} needs {si(wanted_bytes, 'B')} and its disk has {si(free_bytes, 'B')} free")
