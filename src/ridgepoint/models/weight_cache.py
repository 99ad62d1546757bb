"""Packed weights kept between starts: where, under which key, and what is said about it.

A file answers for one checkpoint, format and kernel layout. The layout's part of the key is a fingerprint of packed bytes,
so it changes whenever packing does, whatever any version number says. Anything wrong with the file means it is made anew;
a file that cannot be written is said and not needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ridgepoint.catalog.families import CheckpointConfig
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import pack
from ridgepoint.models import packed_file
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.load_packed import Target, empty_packed, fill_packed, plan
from ridgepoint.models.pack import matrices_of, pack_latents
from ridgepoint.models.packed_file import Buffers, PackedFileError
from ridgepoint.models.source import Source
from ridgepoint.units import si

OFF = "off"
VARIABLE = "RIDGEPOINT_WEIGHT_CACHE"
SMALLEST_BYTES = 128 << 20  # below, packing takes less time than it takes to notice
SPARE_BYTES = 1 << 30  # of the disk that is never taken for a cache
Announce = Callable[[str], None]


def cache_folder(option: str | None) -> Path | None:
    """The folder named by the option or else by RIDGEPOINT_WEIGHT_CACHE; None for `off`; by default the user's cache."""
    named = option or os.environ.get(VARIABLE)
    if named == OFF:
        return None
    if named:
        return Path(named).expanduser()
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "ridgepoint" / "weights"


def load_cached(
    source: Source,
    config: CheckpointConfig,
    dtype: torch.dtype,
    fmt: str | None,
    folder: Path | None,
    announce: Announce,
    *,
    progress: bool = False,
    smallest_bytes: int = SMALLEST_BYTES,
) -> tuple[Decoder, dict[str, Target]]:
    """`load_packed`, from the cache where it holds these very weights; packs, and keeps them there, where it does not."""
    targets = plan(source, config, dtype, fmt)
    decoder = empty_packed(config, dtype, targets)
    buffers = buffers_of(decoder)
    num_bytes = sum(data.nbytes for data in buffers.values())
    if folder is None or num_bytes < smallest_bytes:
        fill_packed(decoder, source, config, targets, progress=progress)
        pack_latents(decoder, fmt)
        announce("weight cache off: " + ("as asked" if folder is None else f"{si(num_bytes, 'B')} are packed at once"))
        return decoder, targets
    path, key = folder / file_name(source, dtype, fmt), key_of(source, targets)
    began = time.perf_counter()
    try:
        size = packed_file.read(path, key, buffers, native.num_threads())
    except PackedFileError as miss:
        fill_packed(decoder, source, config, targets, progress=progress)
        took = time.perf_counter() - began
        announce(f"weight cache made, packing took {took:.1f} s: {_keep(path, key, buffers, miss.message)}")
    else:
        rate = size / (time.perf_counter() - began)
        announce(f"weight cache used: {si(size, 'B')} at {si(rate, 'B/s')} from {path}")
    pack_latents(decoder, fmt)
    return decoder, targets


def _keep(path: Path, key: dict[str, Any], buffers: Buffers, why: str) -> str:
    """Write the file; what is said of it either way. A cache is never worth failing for."""
    num_bytes = sum(data.nbytes for data in buffers.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(path.parent).free
        if free < num_bytes + SPARE_BYTES:
            return f"not kept, {path.parent} has {si(free, 'B')} free for {si(num_bytes, 'B')}"
        began = time.perf_counter()
        size = packed_file.write(path, key, buffers, native.num_threads())
    except OSError as error:
        return f"not kept, {path} cannot be written: {error.strerror or error}"
    return f"{si(size, 'B')} kept in {time.perf_counter() - began:.1f} s at {path} ({why})"


def buffers_of(decoder: Decoder) -> Buffers:
    """The bytes of everything a checkpoint fills, by name: packed weights and other parameters, sharing their memory."""
    # The state is what is loaded: frequencies and counters, which are computed, are no part of it.
    found: Buffers = {name: t.view(-1).view(torch.uint8).numpy() for name, t in decoder.state_dict().items()}
    names = {id(module): name for name, module in decoder.named_modules()}
    for module, leaf, _ in matrices_of(decoder):
        found[f"{names[id(module)]}.{leaf}"] = getattr(module, leaf).data
    if decoder.packed_head is not None:
        found["packed head"] = decoder.packed_head.data
    return found


def key_of(source: Source, targets: dict[str, Target]) -> dict[str, Any]:
    """What must be equal for a file to serve: each part is named in the reason when it is not."""
    files = {file.path: file for file in source.files.values()}
    stamps = [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns, file.header_sha256] for path, file in sorted(files.items())]  # fmt: skip
    config = hashlib.sha256((source.folder / "config.json").read_bytes()).hexdigest()
    formats = {target.param: [target.format, target.stored] for target in targets.values()}
    return {
        "the checkpoint": [stamps, config],
        "the format": formats,
        "the kernels' layout": {fmt: layout_fingerprint(fmt) for fmt in sorted({target.format for target in targets.values()})},
    }  # fmt: skip


@cache
def layout_fingerprint(fmt: str) -> str:
    """SHA-256 of a small matrix packed in `fmt`, plain and gated: several panels, groups and paddings."""
    w_OI = torch.linspace(-1, 1, 150 * 300).view(150, 300).sin()
    digest = hashlib.sha256()
    for glu in (False, True):
        digest.update(pack(w_OI, fmt, glu=glu).data.tobytes())
    return digest.hexdigest()


def file_name(source: Source, dtype: torch.dtype, fmt: str | None) -> str:
    """One file per folder and format, so that what is made anew replaces what it was made for."""
    folder = source.folder.resolve()
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", folder.name)[:60]
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return f"{readable}-{fmt or str(dtype).removeprefix('torch.')}-{place}.packed"
