"""Loads a checkpoint straight into packed weights: quantised matrices by their own codes, others once rounded.

Decides the packed format of every parameter from the headers alone. A stored format the kernels have is kept to the bit;
one they lack is multiplied out and packed in the type the model computes in, and the report says so. Peak memory is the
packed weights plus one matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ridgepoint.catalog.families import CheckpointConfig, Piece
from ridgepoint.errors import ConfigError
from ridgepoint.kernels.packed import GROUPS, Packed, pack_codes, pack_matrix, unfilled
from ridgepoint.models.checkpoint import fill, fill_region, materialise, open_checked, with_progress
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import Role, matrices_of, pack_latents, widen_vectors
from ridgepoint.models.source import Source
from ridgepoint.models.stored import Form, form_of, output_rows, read_codes
from ridgepoint.nn.linear import replace_weight

HEAD, EMBED = "head.weight", "embed.weight"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parameter to be packed: in `format`, and whether its codes are `stored` ones. `why` says what stood against that."""

    param: str
    role: Role
    format: str
    stored: bool
    why: str | None = None

    @property
    def told(self) -> str:
        if self.stored:
            return f"{self.format} as stored"
        return f"{self.format} instead of {self.why}" if self.why else self.format


def stored_format(form: Form, files_dtype: str) -> tuple[str | None, str | None]:
    """The packed format that holds a stored form to the bit, or None and what the kernels lack."""
    groups = f"{form.group}" if form.group else "rows"
    if form.kind == "int8" and form.group in (0, 32, 128):
        return (f"int8-{form.group}" if form.group else "int8"), None
    if form.kind == "int4" and form.group in (32, 128):
        if files_dtype != "BF16":
            return None, f"int4 with scales of {files_dtype}, which its kernels keep in bf16"
        return f"int4-{form.group}", None
    if form.kind == "fp4" and form.group == 32:
        return "mxfp4", None
    if form.kind == "fp8" and form.group % GROUPS["fp8"] == 0 and form.group:
        return "fp8", None
    return None, f"{form.kind} in groups of {groups}"


def plan(source: Source, config: CheckpointConfig, dtype: torch.dtype, fmt: str | None) -> dict[str, Target]:
    """The packed form of every matrix, by parameter. `fmt` None keeps what is stored; else everything becomes `fmt`."""
    if fmt is not None and fmt not in GROUPS:
        raise ConfigError(f"weight format {fmt!r} is unknown; allowed: {', '.join(GROUPS)}")
    if dtype == torch.float32 and fmt not in (None, "f32"):
        raise ConfigError(f"a float32 decoder packs as f32, not {fmt!r}", hint="load it in bfloat16")
    plain = "f32" if dtype == torch.float32 else "bf16"
    pieces: dict[str, list[Piece]] = {}
    for piece in config.pieces:
        pieces.setdefault(piece.param, []).append(piece)
    decoder = Decoder(config.spec, dtype, device="meta")
    names = {id(module): name for name, module in decoder.named_modules()}
    targets = [(f"{names[id(module)]}.{leaf}", role) for module, leaf, role in matrices_of(decoder)]
    if decoder.head is None:
        targets.append((EMBED, "plain"))  # packed once more, as the head
    found = {}
    for param, role in targets:
        kept, why = (None, None) if role == "router" else _common_format(source, config, pieces[param])
        wanted = "f32" if role == "router" else fmt or (kept if dtype != torch.float32 and kept else plain)
        stored = kept is not None and wanted.removesuffix("-a8") == kept
        found[param] = Target(param=param, role=role, format=wanted, stored=stored, why=why)
    return found


def _common_format(source: Source, config: CheckpointConfig, pieces: list[Piece]) -> tuple[str | None, str | None]:
    """The format in which all the pieces of a parameter are stored, if it is one that is packed to the bit."""
    found: set[tuple[str | None, str | None]] = set()
    for piece in pieces:
        form = form_of(source.files, config.storage, piece)
        if form.packing == "plain":
            found.add((None, None))
        else:
            found.add(stored_format(form, source.files[form.scale].entries[form.scale].dtype))
    if len(found) > 1:
        return None, "pieces in several formats"
    return found.pop()


@torch.no_grad()
def load_packed(
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    fmt: str | None = None,
    *,
    max_context: int | None = None,
    progress: bool = False,
) -> Decoder:
    """What `checkpoint.load` and `pack_decoder` give, without the model in between, and with stored codes kept."""
    source, config = open_checked(folder, max_context)
    targets = plan(source, config, dtype, fmt)
    decoder = empty_packed(config, dtype, targets)
    fill_packed(decoder, source, config, targets, progress=progress)
    pack_latents(decoder, fmt)
    return decoder


@torch.no_grad()
def empty_packed(config: CheckpointConfig, dtype: torch.dtype, targets: dict[str, Target]) -> Decoder:
    """A decoder with room for its packed weights and its other parameters."""
    decoder = Decoder(config.spec, dtype, device="meta")
    for target in targets.values():
        module, leaf = _owner(decoder, target.param)
        shape = getattr(module, leaf).shape
        count = shape[0] if len(shape) == 3 else 1
        room = unfilled(target.format, count, *shape[-2:], glu=target.role == "glu", stacked=len(shape) == 3)
        if target.param == EMBED:
            decoder.packed_head = room
        else:
            replace_weight(module, leaf, room)
    widen_vectors(decoder)
    return materialise(decoder, "cpu").eval().requires_grad_(False)


@torch.no_grad()
def fill_packed(
    decoder: Decoder, source: Source, config: CheckpointConfig, targets: dict[str, Target], *, progress: bool = False
) -> None:
    """Read every piece once, in the order of the files; a matrix is packed when its last piece has come."""
    plain = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    waiting = _pieces_by_matrix(config, targets)
    for piece in with_progress(source, config, progress):
        target = targets.get(piece.param)
        if target is None or piece.param == EMBED:
            fill(source, config, piece, plain[piece.param])
        if target is None:
            continue
        group = waiting[piece.param, piece.index]
        group.arrived += 1
        if group.arrived == len(group.pieces):
            room = decoder.packed_head if piece.param == EMBED else getattr(*_owner(decoder, piece.param))
            _pack_group(room, source, config, target, group.pieces, decoder.dtype)
            for one in group.pieces:
                for name in form_of(source.files, config.storage, one).names:
                    source.files[name].release(name)


@dataclass
class _Group:
    """The pieces of one matrix (of a whole stack, where it is stored as one)."""

    pieces: list[Piece]
    arrived: int = 0


def _pieces_by_matrix(config: CheckpointConfig, targets: dict[str, Target]) -> dict[tuple[str, int | None], _Group]:
    groups: dict[tuple[str, int | None], _Group] = {}
    for piece in config.pieces:
        if piece.param in targets:
            groups.setdefault((piece.param, piece.index), _Group(pieces=[])).pieces.append(piece)
    for group in groups.values():
        group.pieces.sort(key=lambda piece: piece.rows or (0, 0))
    return groups


def _pack_group(
    room: Packed, source: Source, config: CheckpointConfig, target: Target, pieces: list[Piece], dtype: torch.dtype
) -> None:
    forms = [form_of(source.files, config.storage, piece) for piece in pieces]
    for index, within in _matrices(room, pieces[0]):
        if target.stored:
            parts = [(piece, read_codes(source.files, form, within)) for piece, form in zip(pieces, forms, strict=True)]
            codes_OI = _joined([output_rows(codes.codes_OI, piece) for piece, codes in parts])
            scales_ON = _joined([output_rows(codes.scales_ON, piece) for piece, codes in parts])
            group, kept = parts[0][1].group, GROUPS[room.format]
            if kept and group > kept:  # a coarser group of the checkpoint is several of the kernels'
                scales_ON = scales_ON.repeat_interleave(group // kept, 1)[:, : -(-room.inputs // kept)]
            pack_codes(room, index, codes_OI, scales_ON)
        else:
            pack_matrix(room, index, _plain_matrix(room, source, pieces, forms, within, dtype, target.role))


def _matrices(room: Packed, piece: Piece) -> Iterator[tuple[int, int | None]]:
    """(index in the packed weight, index in the stored stack) of the matrices a group of pieces holds."""
    if not room.stacked:
        yield 0, None
    elif piece.index is not None:
        yield piece.index, None
    else:
        for index in range(room.num_matrices):
            yield index, index


def _plain_matrix(
    room: Packed,
    source: Source,
    pieces: list[Piece],
    forms: list[Form],
    within: int | None,
    dtype: torch.dtype,
    role: Role,
) -> torch.Tensor:
    """[outputs, inputs] in the type the decoder would keep it in: what `checkpoint.load` would have made."""
    first = pieces[0]
    stored = source.files[first.tensor].tensor(first.tensor) if forms[0].packing == "plain" else None
    kept = torch.float32 if role == "router" else dtype
    if len(pieces) == 1 and stored is not None and stored.dtype == kept and first.layout == "same" and not first.every:
        return stored if within is None else stored[within]
    matrix_OI = torch.empty(room.outputs, room.inputs, dtype=kept)
    for piece, form in zip(pieces, forms, strict=True):
        rows = slice(None) if piece.rows is None else slice(*piece.rows)
        fill_region(source, form, piece, matrix_OI[rows], within)
    return matrix_OI


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _owner(decoder: Decoder, param: str) -> tuple[nn.Module, str]:
    path, _, leaf = param.rpartition(".")
    return decoder.get_submodule(path), leaf


def summary(targets: dict[str, Target]) -> str:
    """`int4-32 as stored (34), int8 as stored (1)`: what is packed how, routers aside."""
    count = Counter(target.told for target in targets.values() if target.role != "router")
    return ", ".join(f"{what} ({number})" for what, number in count.most_common())


def by_role(targets: dict[str, Target]) -> list[dict[str, Any]]:
    """The same by the parameter's last words (`experts.w_down_EDF`), routers too: what `explain-kernels` shows."""
    count = Counter(
        (".".join(t.param.removesuffix(".weight").split(".")[-2:]), t.format, t.told) for t in targets.values()
    )
    return [
        {"role": role, "matrices": number, "packed": fmt, "how": told} for (role, fmt, told), number in count.items()
    ]
