"""Loads a checkpoint into a `Decoder`: one tensor at a time from the memory map to its region of a parameter.

What goes where is the family's list of pieces; how numbers are stored is the config's. Every tensor must be there,
have its shape and a sensible type, and nothing may be left over. Peak memory is the weights plus one tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ridgepoint.catalog.families import CheckpointConfig, Piece, pieces_of, read_checkpoint_config
from ridgepoint.catalog.families.storage import Fp8Blocks, Int8Channels, Mxfp4
from ridgepoint.errors import CheckpointError
from ridgepoint.models import decode_storage
from ridgepoint.models.decode_storage import MXFP4_BLOCK
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.safetensors_file import Entry, SafetensorsFile
from ridgepoint.models.source import Source, open_source, resolve

PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")


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
    source = open_source(resolve(path_or_hub_id, revision))
    config = read_checkpoint_config(source.config)
    spec = config.spec
    if max_context is not None:
        if not 0 < max_context <= spec.max_context:
            raise CheckpointError(f"max_context {max_context} is not possible; allowed: 1 to {spec.max_context}")
        spec = replace(spec, max_context=max_context)
    check_tensors(source, config)
    decoder = materialise(Decoder(spec, dtype, device="meta"), device)
    targets = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    with torch.no_grad():
        for piece in _with_progress(_by_file(source, config.pieces), source, progress):
            _fill(source, config, piece, targets[piece.param])
    return decoder.eval().requires_grad_(False)


def materialise(decoder: Decoder, device: torch.device | str) -> Decoder:
    """Give a decoder built on `meta` real, uninitialised memory (rotary frequencies are computed)."""
    decoder.to_empty(device=device)
    decoder.reset_rotary(device)
    for _, moe in decoder.moe_layers():
        moe.router.load_E.zero_()
    return decoder


def to_checkpoint(decoder: Decoder) -> dict[str, torch.Tensor]:
    """The decoder's weights under the family's tensor names and shapes: what `load` reads back."""
    sources = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    out: dict[str, torch.Tensor] = {}
    for piece in pieces_of(decoder.spec):
        region = _region(sources[piece.param].detach(), piece)
        if piece.tensor not in out:
            out[piece.tensor] = torch.empty(piece.shape, dtype=region.dtype)
        _as_region(out[piece.tensor], piece).copy_(region)
    return out


def check_tensors(source: Source, config: CheckpointConfig) -> None:
    """Names, shapes and types of everything, before a byte of it is read."""
    expected: set[str] = set()
    for piece in config.pieces:
        for name, shape, dtypes in _stored(source, config, piece):
            expected.add(name)
            file = source.files.get(name)
            if file is None:
                raise CheckpointError(f"{source.folder}: tensor {name!r} is missing{_where(source, piece)}")
            _check_entry(file, name, file.entries[name], shape, dtypes)
    extra = re.compile("|".join(f"(?:{pattern})" for pattern in config.extra_patterns) or r"(?!)")
    for name, file in source.files.items():
        if name not in expected and not extra.fullmatch(name) and not _is_tied_head(source, config, name):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is not part of a {config.spec.family} model like this one"
            )


def _check_entry(
    file: SafetensorsFile, name: str, entry: Entry, shape: tuple[int, ...] | None, dtypes: tuple[str, ...]
) -> None:
    if entry.dtype not in dtypes:
        raise CheckpointError(f"{file.path}: tensor {name!r} has type {entry.dtype}; allowed: {', '.join(dtypes)}")
    if shape is not None and entry.shape != shape:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} has shape {list(entry.shape)}; the config asks for {list(shape)}"
        )


def _stored(
    source: Source, config: CheckpointConfig, piece: Piece
) -> Iterator[tuple[str, tuple[int, ...] | None, tuple[str, ...]]]:
    """The stored tensors behind a piece: name, shape (None: checked where it is decoded) and allowed types."""
    name, shape, storage = piece.tensor, piece.shape, config.storage
    file = source.files.get(name)
    stored = file.entries[name].dtype if file is not None else None
    if isinstance(storage, Fp8Blocks) and stored == "F8_E4M3" and len(shape) == 2:
        yield name, shape, ("F8_E4M3",)
        blocks = (-(-shape[0] // storage.rows), -(-shape[1] // storage.columns))
        yield f"{name}_scale_inv", blocks, ("F32", "BF16", "F16")
    elif isinstance(storage, Int8Channels) and stored == "I8" and len(shape) == 2:
        yield name, shape, ("I8",)
        yield f"{name}_scale", _scale_shape(source, f"{name}_scale", shape), ("F32", "BF16", "F16")
    elif _is_mxfp4(source, config, piece):
        experts, num_in, num_out = shape
        if num_in % MXFP4_BLOCK:
            raise CheckpointError(f"tensor {name!r}: MXFP4 needs rows of a multiple of {MXFP4_BLOCK}, got {num_in}")
        per_row = num_in // MXFP4_BLOCK
        yield f"{name}_blocks", (experts, num_out, per_row, MXFP4_BLOCK // 2), ("U8",)
        yield f"{name}_scales", (experts, num_out, per_row), ("U8",)
    else:
        yield name, shape, PLAIN_DTYPES


def _scale_shape(source: Source, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """A column of scales, or one per group when the stored width divides the row."""
    file = source.files.get(name)
    got = file.entries[name].shape if file is not None else ()
    if len(got) == 2 and got[1] > 0 and shape[1] % got[1] == 0:
        return shape[0], got[1]
    return shape[0], 1


def _where(source: Source, piece: Piece) -> str:
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


def _fill(source: Source, config: CheckpointConfig, piece: Piece, param: torch.Tensor) -> None:
    region = _region(param, piece)
    if _is_mxfp4(source, config, piece):
        _fill_mxfp4(source, piece, region)
        return
    stored = _as_region(_decoded(source, config, piece), piece)
    if stored.shape != region.shape:
        raise CheckpointError(
            f"tensor {piece.tensor!r} gives {list(stored.shape)} for {piece.param} {list(region.shape)}"
        )
    region.copy_(stored)
    source.files[piece.tensor].release(piece.tensor)


def _is_mxfp4(source: Source, config: CheckpointConfig, piece: Piece) -> bool:
    """Only stacked expert matrices are stored so, and each is either plain or two tensors under its name."""
    return isinstance(config.storage, Mxfp4) and len(piece.shape) == 3 and f"{piece.tensor}_blocks" in source.files


def _fill_mxfp4(source: Source, piece: Piece, region_EOI: torch.Tensor) -> None:
    """Expert by expert, so that decoding needs the memory of one."""
    blocks_file, scales_file = source.files[f"{piece.tensor}_blocks"], source.files[f"{piece.tensor}_scales"]
    blocks, scales = blocks_file.tensor(f"{piece.tensor}_blocks"), scales_file.tensor(f"{piece.tensor}_scales")
    for expert, region in enumerate(region_EOI):
        decoded_OI = decode_storage.mxfp4(blocks[expert], scales[expert])
        region.copy_(_as_region(decoded_OI.T, piece))  # stored output-major, declared input-major
    blocks_file.release(f"{piece.tensor}_blocks")


def _decoded(source: Source, config: CheckpointConfig, piece: Piece) -> torch.Tensor:
    file, storage = source.files[piece.tensor], config.storage
    weight = file.tensor(piece.tensor)
    if weight.dtype == torch.float8_e4m3fn:
        assert isinstance(storage, Fp8Blocks)
        scale_name = f"{piece.tensor}_scale_inv"
        scale = source.files[scale_name].tensor(scale_name)
        return decode_storage.fp8_blocks(weight, scale, storage.rows, storage.columns)
    if weight.dtype == torch.int8:
        scale_name = f"{piece.tensor}_scale"
        return decode_storage.int8_channels(weight, source.files[scale_name].tensor(scale_name))
    return weight


def _region(param: torch.Tensor, piece: Piece) -> torch.Tensor:
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


def _stored_name(source: Source, piece: Piece) -> str:
    """The tensor whose bytes make up the piece."""
    return piece.tensor if piece.tensor in source.files else f"{piece.tensor}_blocks"


def _by_file(source: Source, pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces in the order their bytes lie on disk."""

    def place(piece: Piece) -> tuple[Path, int]:
        name = _stored_name(source, piece)
        return source.files[name].path, source.files[name].entries[name].start

    return sorted(pieces, key=place)


def _with_progress(pieces: list[Piece], source: Source, wanted: bool) -> Iterator[Piece]:
    if not wanted:
        yield from pieces
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    names = [_stored_name(source, piece) for piece in pieces]
    sizes = [source.files[name].entries[name] for name in names]
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("loading", total=sum(e.stop - e.start for e in sizes))
        for piece, entry in zip(pieces, sizes, strict=True):
            yield piece
            bar.advance(task, entry.stop - entry.start)
