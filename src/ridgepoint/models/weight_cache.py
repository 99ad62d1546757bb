"""Packed weights kept between starts: under which key, and what is said about it (kept.py knows where).

A file answers for the bytes of one checkpoint, a format, a kernel layout and the code that reads checkpoints. The layout's part
of the key is a fingerprint of packed bytes, so it changes whenever packing does, whatever any version number says. Anything wrong
with the file means it is made anew; it is written while the model serves already, and one that cannot be written is not needed.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ridgepoint.catalog import families
from ridgepoint.errors import CheckpointError
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import pack, whole_format
from ridgepoint.models import identity
from ridgepoint.models.checkpoint import checked_config, open_checked
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.identity import look_at
from ridgepoint.models.kept import Wanted
from ridgepoint.models.load_packed import Target, empty_packed, fill_packed, plan
from ridgepoint.models.pack import matrices_of, pack_latents
from ridgepoint.models.packed_file import Buffers, PackedFile, PackedFileError, write
from ridgepoint.models.source import read_config
from ridgepoint.units import si

SMALLEST_BYTES = 128 << 20  # below, packing takes less time than it takes to notice
SMALLEST_SHARED_BYTES = 1 << 20  # of a parameter that is not packed: below, a copy is as good
SPARE_BYTES = 1 << 30  # of the disk that is never taken for a cache
LOADER = ("checkpoint", "codes", "load_packed", "pack", "source", "stored")  # modules that decide what is packed
Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A decoder ready to serve. `keeping` is alive while its weights are written; the process waits for it at its end."""

    decoder: Decoder
    targets: dict[str, Target]
    keeping: threading.Thread | None = None


def load_cached(
    path: Path,
    dtype: torch.dtype,
    fmt: str | None,
    cache: Path | None,
    announce: Announce,
    *,
    max_context: int | None = None,
    progress: bool = False,
    smallest_bytes: int = SMALLEST_BYTES,
) -> Loaded:
    """`load_packed`, from the cache where it holds these very weights; packs, and keeps them there, where it does not."""
    began = time.perf_counter()
    form = fmt or whole_format(dtype)
    wanted = None if cache is None else Wanted(cache=cache, folder=look_at(path), format=form)
    why = ""
    if wanted is not None:
        try:
            return _from_cache(wanted, dtype, fmt, announce, began, max_context)
        except PackedFileError as miss:
            why = miss.message
    source, config = open_checked(path, max_context)
    targets = plan(source, config, dtype, fmt)
    decoder = empty_packed(config, dtype, targets)
    fill_packed(decoder, source, config, targets, progress=progress)
    buffers = buffers_of(decoder)
    num_bytes = sum(data.nbytes for data in buffers.values())
    pack_latents(decoder, fmt)
    took = f"packing took {time.perf_counter() - began:.1f} s"
    if wanted is None or num_bytes < smallest_bytes:
        announce("weight cache off: " + ("as asked" if wanted is None else f"{si(num_bytes, 'B')} are packed at once"))
        return Loaded(decoder=decoder, targets=targets)
    announce(f"weight cache made, {took} ({why})")
    content = identity.content_at_leisure(wanted.folder)
    keeping = threading.Thread(target=_keep, args=(wanted, targets, buffers, content, announce), name="weight-cache")
    keeping.start()
    return Loaded(decoder=decoder, targets=targets, keeping=keeping)


def _from_cache(
    wanted: Wanted, dtype: torch.dtype, fmt: str | None, announce: Announce, began: float, max_context: int | None
) -> Loaded:
    """Raises `PackedFileError` saying why nothing there serves."""
    path, content = _find(wanted, announce)
    with PackedFile(path) as file:
        targets = {each["param"]: Target(**each) for each in file.notes.get("targets", [])}
        file.require(key_of(wanted, content, targets))
        config = checked_config(read_config(wanted.folder.path), max_context)
        decoder = empty_packed(config, dtype, targets)
        if file.sizes != {name: data.nbytes for name, data in buffers_of(decoder).items()}:
            raise PackedFileError("its weights are others")
        buffers, mapped = file.take()
        _adopt(decoder, buffers)
    pack_latents(decoder, fmt)
    rate = file.num_bytes / (time.perf_counter() - began)
    how = "mapped" if mapped else "read"
    announce(f"weight cache used: {si(file.num_bytes, 'B')} {how} at {si(rate, 'B/s')} from {path}")
    return Loaded(decoder=decoder, targets=targets)


def _find(wanted: Wanted, announce: Announce) -> tuple[Path, str]:
    """The file made from the bytes in the folder, and what names those. Bytes are compared only where one may fit."""
    content = identity.recall(wanted.folder, wanted.cache)
    if content is None:
        if wanted.kept() is None:
            raise PackedFileError("there is none yet")
        began = time.perf_counter()
        content = identity.content_of(wanted.folder, native.num_threads())
        announce(
            f"weight cache: the checkpoint is new or its dates are; comparing took {time.perf_counter() - began:.1f} s"
        )
        if wanted.kept(content) is None:
            raise PackedFileError("the checkpoint changed")
        try:
            identity.remember(wanted.folder, wanted.cache, content)
        except OSError as error:
            announce(f"weight cache: dates cannot be noted in {wanted.cache}: {error.strerror or error}")
    path = wanted.kept(content)
    if path is None:
        raise PackedFileError("there is none yet")
    return path, content


def _adopt(decoder: Decoder, buffers: Buffers) -> None:
    """Make kept bytes the decoder's: weights where they lie, which may be read-only; small parameters as copies."""
    names = {id(module): name for name, module in decoder.named_modules()}
    for module, leaf, _ in list(matrices_of(decoder)):
        setattr(module, leaf, getattr(module, leaf).over(buffers[f"{names[id(module)]}.{leaf}"]))
    if decoder.packed_head is not None:
        decoder.packed_head = decoder.packed_head.over(buffers["packed head"])
    parameters = dict(decoder.named_parameters())
    for name, tensor in decoder.state_dict().items():
        if name in parameters and tensor.nbytes >= SMALLEST_SHARED_BYTES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nobody writes to the weights of a decoder that serves
                raw = torch.from_numpy(buffers[name])
            parameters[name].data = raw.view(tensor.dtype).view(tensor.shape)
        else:
            tensor.view(-1).view(torch.uint8).numpy()[:] = buffers[name]


def _keep(
    wanted: Wanted, targets: dict[str, Target], buffers: Buffers, folder_content: Future[str], announce: Announce
) -> None:
    """Write the file, and say what came of it. A cache is never worth failing for, nor slower steps of a model that serves."""
    num_bytes = sum(data.nbytes for data in buffers.values())
    began = time.perf_counter()
    try:
        wanted.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(wanted.cache).free
        if free < num_bytes + SPARE_BYTES:
            announce(f"weight cache not kept: {wanted.cache} has {si(free, 'B')} free for {si(num_bytes, 'B')}")
            return
        content = folder_content.result()
        if look_at(wanted.folder.path) != wanted.folder:
            announce(f"weight cache not kept: {wanted.folder.path} changed while it was read")
            return
        before = identity.last_content(wanted.folder, wanted.cache)
        key = key_of(wanted, content, targets)
        size = write(wanted.path(content), key, {"targets": [asdict(target) for target in targets.values()]}, buffers)
        identity.remember(wanted.folder, wanted.cache, content)
        _remove_unused(wanted.cache, before)
    except OSError as error:
        announce(f"weight cache not kept: {wanted.cache} cannot be written: {error.strerror or error}")
    except CheckpointError as error:  # the folder is gone by now
        announce(f"weight cache not kept: {error.message}")
    else:
        announce(f"weight cache kept: {si(size, 'B')} in {time.perf_counter() - began:.1f} s at {wanted.path(content)}")


def key_of(wanted: Wanted, content: str, targets: dict[str, Target]) -> dict[str, Any]:
    """What must be equal for a file to serve: each part is named in the reason when it is not."""
    formats = sorted({target.format for target in targets.values()})
    return {
        "the checkpoint": content,
        "the format": wanted.format,
        "the kernels' layout": {fmt: layout_fingerprint(fmt) for fmt in formats},
        "the loader": loader_fingerprint(),
    }


def _remove_unused(cache: Path, content: str | None) -> None:
    """Files made from bytes that this folder held before and no folder seen holds now."""
    if content is not None and content not in set(identity.contents_remembered(cache)):
        for file in cache.glob(f"*-{content[:16]}.packed"):
            file.unlink(missing_ok=True)


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


@cache
def layout_fingerprint(fmt: str) -> str:
    """SHA-256 of a small matrix packed in `fmt`, plain and gated: several panels, groups and paddings."""
    w_OI = torch.linspace(-1, 1, 150 * 300).view(150, 300).sin()
    digest = hashlib.sha256()
    for glu in (False, True):
        digest.update(pack(w_OI, fmt, glu=glu).data.tobytes())
    return digest.hexdigest()


@cache
def loader_fingerprint() -> str:
    """SHA-256 of the code that decides which tensor becomes which weight: a mistake mended there must not live on in files."""
    digest = hashlib.sha256()
    for file in sorted(
        [*Path(families.__file__).parent.glob("*.py"), *(Path(__file__).with_name(f"{name}.py") for name in LOADER)]
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest()
