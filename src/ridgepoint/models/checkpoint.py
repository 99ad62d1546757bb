"""Loads a checkpoint into a `Decoder`: one tensor at a time from the memory map to its region of a parameter.

What goes where is the family's list of pieces; how numbers are stored is the config's. Every tensor must be there,
have its shape and a sensible type, and nothing may be left over. Peak memory is the weights plus one tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ridgepoint.catalog.families import CheckpointConfig, Piece, pieces_of, read_checkpoint_config
from ridgepoint.errors import CheckpointError
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.safetensors_file import Entry, SafetensorsFile
from ridgepoint.models.source import Source, open_source, resolve
from ridgepoint.models.stored import Form, expected, form_of, output_rows, read_codes

AHEAD_BYTES = 64 << 20  # of a file that are being read while what lies before them is worked on


def load(
    path_or_hub_id: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    device: torch.device | str = "cpu",
    max_context: int | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Decoder:
    """The model in `path_or_hub_id`, ready to serve (evaluation mode, no gradients).

    `max_context` serves a shorter context than the checkpoint allows (never a longer one). `progress` draws a bar on
    stderr. Raises `CheckpointError` naming the fact, tensor or file at fault.
    """
    source, config = open_checked(resolve(path_or_hub_id, revision), max_context)
    decoder = materialise(Decoder(config.spec, dtype, device="meta"), device)
    targets = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    with torch.no_grad():
        for piece in with_progress(source, config, progress):
            fill(source, config, piece, targets[piece.param])
    return decoder.eval().requires_grad_(False)


def open_checked(folder: Path, max_context: int | None = None) -> tuple[Source, CheckpointConfig]:
    """The files of a checkpoint and what its config says, every tensor's name, shape and type checked."""
    source = open_source(folder)
    config = checked_config(source.config, max_context)
    check_tensors(source, config)
    return source, config


def checked_config(config_json: dict[str, Any], max_context: int | None = None) -> CheckpointConfig:
    """What a config says, for a context no longer than it allows."""
    config = read_checkpoint_config(config_json)
    if max_context is not None:
        if not 0 < max_context <= config.spec.max_context:
            raise CheckpointError(f"max_context {max_context} is not possible; allowed: 1 to {config.spec.max_context}")
        config = replace(config, spec=replace(config.spec, max_context=max_context))
    return config


def materialise(decoder: Decoder, device: torch.device | str) -> Decoder:
    """Give a decoder built on `meta` real, uninitialised memory (rotary frequencies are computed)."""
    with_memory(decoder, device)
    decoder.reset_rotary(device)
    for _, moe in decoder.moe_layers():
        moe.router.load_E.zero_()
    return decoder


def with_memory(module: nn.Module, device: torch.device | str) -> None:
    """Replace a module's parameters and buffers by uninitialised ones on `device`. (`to_empty` on a `meta` module imports
    sympy, a second of every start.)"""
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                fresh = torch.empty(old.shape, dtype=old.dtype, device=device)
                part._parameters[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)
        for name, kept in part._buffers.items():
            if kept is not None:
                part._buffers[name] = torch.empty(kept.shape, dtype=kept.dtype, device=device)


def to_checkpoint(decoder: Decoder) -> dict[str, torch.Tensor]:
    """The decoder's weights under the family's tensor names and shapes: what `load` reads back."""
    sources = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    out: dict[str, torch.Tensor] = {}
    for piece in pieces_of(decoder.spec):
        region = region_of(sources[piece.param].detach(), piece)
        if piece.tensor not in out:
            out[piece.tensor] = torch.empty(piece.shape, dtype=region.dtype)
        _as_region(out[piece.tensor], piece).copy_(region)
    return out


def check_tensors(source: Source, config: CheckpointConfig) -> None:
    """Names, shapes and types of everything, before a byte of it is read."""
    known: set[str] = set()
    for piece in config.pieces:
        for name, shape, dtypes in expected(form_of(source.files, config.storage, piece)):
            known.add(name)
            file = source.files.get(name)
            if file is None:
                raise CheckpointError(f"{source.folder}: tensor {name!r} is missing{_where(source)}")
            _check_entry(file, name, file.entries[name], shape, dtypes)
    extra = re.compile("|".join(f"(?:{pattern})" for pattern in config.extra_patterns) or r"(?!)")
    for name, file in source.files.items():
        if name not in known and not extra.fullmatch(name) and not _is_tied_head(source, config, name):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is not part of a {config.spec.family} model like this one"
            )


def _check_entry(
    file: SafetensorsFile, name: str, entry: Entry, shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> None:
    if entry.dtype not in dtypes:
        raise CheckpointError(f"{file.path}: tensor {name!r} has type {entry.dtype}; allowed: {', '.join(dtypes)}")
    if entry.shape != shape:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} has shape {list(entry.shape)}; the config asks for {list(shape)}"
        )


def _where(source: Source) -> str:
    """Which file a missing tensor would be expected in, when there is only one."""
    files = {file.path for file in source.files.values()}
    return f" (looked in {', '.join(sorted(path.name for path in files))})" if len(files) <= 4 else ""


def _is_tied_head(source: Source, config: CheckpointConfig, name: str) -> bool:
    """Some tied checkpoints store the head as well; it must then equal the embedding."""
    if name != "lm_head.weight" or not config.spec.tied_embeddings:
        return False
    file, table = source.files[name], source.files["model.embed_tokens.weight"]
    if not torch.equal(file.tensor(name), table.tensor("model.embed_tokens.weight")):
        raise CheckpointError(
            f"{file.path}: tensor {name!r} differs from the embedding, but tie_word_embeddings is true"
        )
    file.release(name)
    return True


def fill(source: Source, config: CheckpointConfig, piece: Piece, param: torch.Tensor) -> None:
    """Copy a piece into the parameter it belongs to, and let its pages go."""
    form = form_of(source.files, config.storage, piece)
    fill_region(source, form, piece, region_of(param, piece))
    for name in form.names:
        source.files[name].release(name)


def fill_region(source: Source, form: Form, piece: Piece, region: torch.Tensor, within: int | None = None) -> None:
    """Copy a piece into its region, multiplied out where it is quantised: matrix by matrix, so that takes the memory of one.

    `within` takes that matrix of a stack alone, and `region` is then one matrix.
    """
    if form.packing == "plain":
        stored = _as_region(source.files[piece.tensor].tensor(piece.tensor), piece)
        _copy(stored if within is None else stored[within], piece, region)
    elif within is not None or form.matrices is None:
        _copy(output_rows(read_codes(source.files, form, within, region.device).dense(), piece), piece, region)
    else:
        for index in range(form.matrices):
            _copy(
                output_rows(read_codes(source.files, form, index, region.device).dense(), piece), piece, region[index]
            )


def _copy(stored: torch.Tensor, piece: Piece, region: torch.Tensor) -> None:
    if stored.shape != region.shape:
        raise CheckpointError(
            f"tensor {piece.tensor!r} gives {list(stored.shape)} for {piece.param} {list(region.shape)}"
        )
    region.copy_(stored)


def region_of(param: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The part of a parameter that a piece fills."""
    region = param if piece.index is None else param[piece.index]
    return region if piece.rows is None else region.narrow(piece.axis, piece.rows[0], piece.rows[1] - piece.rows[0])


def _as_region(stored: torch.Tensor, piece: Piece) -> torch.Tensor:
    """A stored tensor (or one being exported) seen in the shape of its region; always a view."""
    if piece.every is not None:
        first, step = piece.every
        stored = stored[..., first::step]
    if piece.layout == "transposed":
        return stored.transpose(-1, -2)
    if piece.layout == "heads":
        assert piece.take is not None
        heads, start, stop = piece.take
        return stored.unflatten(0, (heads, -1))[:, start:stop]
    return stored


def _weights_of(source: Source, config: CheckpointConfig, piece: Piece) -> tuple[Path, Entry]:
    """The file and place of the tensor whose bytes make up most of the piece."""
    name = form_of(source.files, config.storage, piece).names[0]
    return source.files[name].path, source.files[name].entries[name]


def _by_file(source: Source, config: CheckpointConfig) -> list[Piece]:
    """Pieces in the order their bytes lie on disk."""

    def place(piece: Piece) -> tuple[Path, int]:
        path, entry = _weights_of(source, config, piece)
        return path, entry.start

    return sorted(config.pieces, key=place)


def _reading_ahead(source: Source, config: CheckpointConfig) -> Iterator[Piece]:
    """Pieces in the order of the files, which are read some way ahead of them."""
    asked: dict[Path, int] = {}
    for piece in _by_file(source, config):
        path, entry = _weights_of(source, config, piece)
        file = source.files[form_of(source.files, config.storage, piece).names[0]]
        if entry.stop + AHEAD_BYTES // 2 > asked.get(path, 0):
            start = max(entry.start, asked.get(path, 0))
            asked[path] = entry.stop + AHEAD_BYTES
            file.prefetch(start, asked[path])
        yield piece


def with_progress(source: Source, config: CheckpointConfig, wanted: bool) -> Iterator[Piece]:
    """Every piece once, in the order its bytes lie on disk."""
    if not wanted:
        yield from _reading_ahead(source, config)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    pieces = _by_file(source, config)
    entries = [_weights_of(source, config, piece)[1] for piece in pieces]
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=sum(e.stop - e.start for e in entries))
        for piece, entry in zip(_reading_ahead(source, config), entries, strict=True):
            yield piece
            bar.advance(task, entry.stop - entry.start)
