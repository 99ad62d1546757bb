"""Loads a checkpoint straight into packed weights: quantised matrices by their own codes, others once rounded.

Decides the packed format of every parameter before a weight is read. A stored format the kernels of the device have is
kept to the bit; one they lack is multiplied out in the type the model computes in, and the report says so. Where packed
weights live is the device's `Rooms`. Peak memory is the packed weights plus one matrix, spread out on the device it goes to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ridgepoint.catalog.families import CheckpointConfig, Piece
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.packed import A8, GROUPS, Packed
from ridgepoint.models.checkpoint import fill, fill_region, materialise, open_checked, with_progress
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import Role, matrices_of, pack_latents, widen_vectors
from ridgepoint.models.rooms import PLAIN, HostRooms, Rooms, StoredMatrix
from ridgepoint.models.source import Source
from ridgepoint.models.stored import Form, form_of, output_rows, read_codes
from ridgepoint.nn.linear import replace_weight

EMBED = "embed.weight"
Room = Packed | DeviceWeight


@dataclass(frozen=True, kw_only=True)
class Target:
    """What becomes of a matrix: its `format`, and whether its codes are `stored` ones. `why` says what stood against that.
    One that is not `packed` stays a parameter."""

    param: str
    role: Role
    format: str
    stored: bool
    packed: bool = True
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


def plan(
    source: Source, config: CheckpointConfig, dtype: torch.dtype, fmt: str | None, rooms: Rooms | None = None
) -> dict[str, Target]:
    """The form of every matrix in `rooms` (default: the native kernels'), by parameter. `fmt` None keeps what is stored; else
    everything but routers becomes `fmt`."""
    rooms = rooms or HostRooms()
    rooms.check(dtype, fmt)
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
        kept, why = None, None
        if role != "router":
            outputs = decoder.get_parameter(param).shape[-2]
            kept, why = _kept_format(source, config, pieces[param], outputs, role, dtype, rooms)
        wanted = "f32" if role == "router" else fmt or kept or rooms.plain(dtype)
        stored = kept is not None and wanted.removesuffix("-a8") == kept
        found[param] = Target(
            param=param, role=role, format=wanted, stored=stored, packed=rooms.packs(wanted, role), why=why
        )
    return _with_pairs_alike(found, PLAIN[dtype]) if rooms.pairs_experts else found


def _kept_format(
    source: Source, config: CheckpointConfig, pieces: list[Piece], outputs: int, role: Role, dtype: torch.dtype, rooms: Rooms
) -> tuple[str | None, str | None]:  # fmt: skip
    """The format whose stored codes are packed as they are, or None and what stands against it."""
    kept, why = _common_format(source, config, pieces)
    if kept is None:
        return None, why
    ordered = sorted(pieces, key=lambda piece: (piece.index or 0, piece.rows or (0, 0)))
    forms = [form_of(source.files, config.storage, piece) for piece in ordered]
    stored = StoredMatrix(source=source, pieces=ordered, forms=forms, parts=2 if role == "glu" else 1, outputs=outputs)
    lacking = rooms.lacks(kept, dtype, stored)
    return (None, lacking) if lacking else (kept, None)


def _with_pairs_alike(targets: dict[str, Target], plain: str) -> dict[str, Target]:
    """The same with experts left plain where their two matrices are of different kinds, which one op does not multiply."""
    for down in [param for param in targets if param.endswith(".w_down_EDF")]:
        gate_up = down.replace(".w_down_EDF", ".w_gate_up_E2FD")
        formats = [targets[param].format for param in (gate_up, down)]
        if len({fmt.split("-")[0] for fmt in formats}) == 1:
            continue
        why = f"experts in {' and '.join(formats)}, which are multiplied in one"
        for param in (gate_up, down):
            old = targets[param]
            targets[param] = replace(old, format=plain, stored=False, packed=False, why=old.why or why)
    return targets


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
    rooms: Rooms | None = None,
    max_context: int | None = None,
    progress: bool = False,
) -> Decoder:
    """What `checkpoint.load` and `pack_decoder` give, without the model in between, and with stored codes kept."""
    source, config = open_checked(folder, max_context)
    rooms = rooms or HostRooms()
    return load_planned(source, config, dtype, fmt, plan(source, config, dtype, fmt, rooms), rooms, progress=progress)


@torch.no_grad()
def load_planned(
    source: Source,
    config: CheckpointConfig,
    dtype: torch.dtype,
    fmt: str | None,
    targets: dict[str, Target],
    rooms: Rooms,
    *,
    progress: bool = False,
) -> Decoder:
    """`load_packed` of a checkpoint whose `plan` is known."""
    decoder = empty_packed(config, dtype, targets, rooms)
    fill_packed(decoder, source, config, targets, rooms, progress=progress)
    if rooms.packs_latents:
        pack_latents(decoder, fmt)
    return decoder


@torch.no_grad()
def empty_packed(
    config: CheckpointConfig, dtype: torch.dtype, targets: dict[str, Target], rooms: Rooms | None = None
) -> Decoder:
    """A decoder with room for its packed weights and its other parameters."""
    rooms = rooms or HostRooms()
    decoder = Decoder(config.spec, dtype, device="meta")
    for target in targets.values():
        if not target.packed:
            continue
        module, leaf = _owner(decoder, target.param)
        shape = getattr(module, leaf).shape
        count = shape[0] if len(shape) == 3 else 1
        room = rooms.unfilled(target.format, count, *shape[-2:], glu=target.role == "glu", stacked=len(shape) == 3)
        if target.param == EMBED:
            decoder.packed_head = room
        else:
            replace_weight(module, leaf, room)
    if rooms.widens_vectors:
        widen_vectors(decoder)
    return materialise(decoder, rooms.device).eval().requires_grad_(False)


@torch.no_grad()
def fill_packed(
    decoder: Decoder,
    source: Source,
    config: CheckpointConfig,
    targets: dict[str, Target],
    rooms: Rooms | None = None,
    *,
    progress: bool = False,
) -> None:
    """Read every piece once, in the order of the files; a matrix is packed when its last piece has come."""
    rooms = rooms or HostRooms()
    plain = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    waiting = _pieces_by_matrix(config, targets)
    for piece in with_progress(source, config, progress):
        if piece.param in plain:
            fill(source, config, piece, plain[piece.param])
        target = targets.get(piece.param)
        if target is None or not target.packed:
            continue
        group = waiting[piece.param, piece.index]
        group.arrived += 1
        if group.arrived == len(group.pieces):
            room = decoder.packed_head if piece.param == EMBED else getattr(*_owner(decoder, piece.param))
            filled = _pack_group(rooms, room, source, config, target, group.pieces, decoder.dtype)
            if filled is not room:
                _change_room(decoder, target.param, filled)
                targets[target.param] = replace(target, format=filled.format, why=f"{target.format}, for its exponents")
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
        if piece.param in targets and targets[piece.param].packed:
            groups.setdefault((piece.param, piece.index), _Group(pieces=[])).pieces.append(piece)
    for group in groups.values():
        group.pieces.sort(key=lambda piece: piece.rows or (0, 0))
    return groups


def _pack_group(
    rooms: Rooms,
    room: Room,
    source: Source,
    config: CheckpointConfig,
    target: Target,
    pieces: list[Piece],
    dtype: torch.dtype,
) -> Room:
    """The room they went to (see `Rooms.fill_matrix`)."""
    forms = [form_of(source.files, config.storage, piece) for piece in pieces]
    for index, within in _matrices(room, pieces[0]):
        if target.stored:  # pieces may be stored as one tensor, which is then spread out once
            read = {form: read_codes(source.files, form, within, rooms.device) for form in dict.fromkeys(forms)}
            parts = [(piece, read[form]) for piece, form in zip(pieces, forms, strict=True)]
            codes_OI = _joined([output_rows(codes.codes_OI, piece) for piece, codes in parts])
            scales_ON = _joined([output_rows(codes.scales_ON, piece) for piece, codes in parts])
            group, kept = parts[0][1].group, GROUPS[room.format.removesuffix(A8)]
            if kept and group > kept:  # a coarser group of the checkpoint is several of the kernels'
                scales_ON = scales_ON.repeat_interleave(group // kept, 1)[:, : -(-room.inputs // kept)]
            rooms.fill_codes(room, index, codes_OI, scales_ON)
        else:
            matrix_OI = _plain_matrix(rooms, room, source, pieces, forms, within, dtype, target.role)
            room = rooms.fill_matrix(room, index, matrix_OI)
    return room


def _change_room(decoder: Decoder, param: str, room: Room) -> None:
    if param == EMBED:
        decoder.packed_head = room
    else:
        setattr(*_owner(decoder, param), room)


def _matrices(room: Room, piece: Piece) -> Iterator[tuple[int, int | None]]:
    """(index in the packed weight, index in the stored stack) of the matrices a group of pieces holds."""
    if not room.stacked:
        yield 0, None
    elif piece.index is not None:
        yield piece.index, None
    else:
        for index in range(room.num_matrices):
            yield index, index


def _plain_matrix(
    rooms: Rooms,
    room: Room,
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
    matrix_OI = torch.empty(room.outputs, room.inputs, dtype=kept, device=rooms.device)
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
    """`int4-32 as stored (34), int8 as stored (1)`: what is in which format, routers aside."""
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
