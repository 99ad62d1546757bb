"""Which bytes a checkpoint's folder holds: the SHA-256 of them all, remembered beside the names, sizes and dates it was seen at.

A date that changed says nothing, so bytes decide then; they are read at the disk's pace, which is far from packing's. The hash
is a cryptographic one because weights kept for one folder serve another that holds the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ridgepoint.errors import CheckpointError

PART = 32 << 20  # of a file, hashed by one thread
READ = 1 << 20  # by each of many threads; one alone reads a part at once
Stamp = tuple[str, int, int]  # name, size in bytes, nanoseconds of the last change


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A checkpoint's folder at one moment: its config, and the stamps of everything that weights are read from."""

    path: Path
    config: bytes
    stamps: tuple[Stamp, ...]

    @property
    def outline(self) -> str:
        """The same for folders that may hold the same bytes: of the config, the names and the sizes."""
        names = [stamp[:2] for stamp in self.stamps]
        return hashlib.sha256(self.config + json.dumps(names).encode()).hexdigest()[:12]


def look_at(path: Path) -> Folder:
    files = [path / "config.json", path / "model.safetensors.index.json", *path.glob("*.safetensors")]
    try:
        stamps = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files if file.exists()]
        return Folder(path=path.resolve(), config=files[0].read_bytes(), stamps=tuple(sorted(stamps)))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def content_of(folder: Folder, threads: int) -> str:
    """SHA-256 over the names and over the hash of every part of every file."""
    parts = [(name, at) for name, size, _ in folder.stamps for at in range(0, size, PART)]
    digest = hashlib.sha256(json.dumps([stamp[:2] for stamp in folder.stamps]).encode())

    def of(place: tuple[str, int]) -> bytes:
        return _part_digest(folder.path / place[0], place[1], PART if threads == 1 else READ)

    if threads == 1:  # no pool: an interpreter that is ending gives none
        digest.update(b"".join(map(of, parts)))
    else:
        with ThreadPoolExecutor(threads) as pool:
            digest.update(b"".join(pool.map(of, parts)))
    return digest.hexdigest()


def content_at_leisure(folder: Folder) -> Future[str]:
    """`content_of`, by a thread that has a core only while nobody else wants it. It holds the interpreter's lock a few hundred times
    for microseconds: a thread that lost its core while it held it would stop everybody else's Python."""
    found: Future[str] = Future()

    def find() -> None:
        try:
            if hasattr(os, "SCHED_IDLE"):
                with suppress(OSError):  # refused in some containers: it takes its share then
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            found.set_result(content_of(folder, 1))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=find, name="checkpoint-content").start()
    return found


def _part_digest(file: Path, start: int, read_bytes: int) -> bytes:
    digest, block = hashlib.sha256(), memoryview(bytearray(read_bytes))
    fd = os.open(file, os.O_RDONLY)
    try:
        at = start
        while at < start + PART and (count := os.preadv(fd, [block[: start + PART - at]], at)):
            digest.update(block[:count])
            at += count
    finally:
        os.close(fd)
    return digest.digest()


def recall(folder: Folder, cache: Path) -> str | None:
    """The content remembered for these very stamps."""
    seen = _read(_record(folder, cache))
    return seen[1] if seen is not None and seen[0] == list(folder.stamps) else None


def last_content(folder: Folder, cache: Path) -> str | None:
    """The content remembered for this folder, whatever its stamps were then."""
    seen = _read(_record(folder, cache))
    return None if seen is None else seen[1]


def remember(folder: Folder, cache: Path, content: str) -> None:
    """Raises `OSError`."""
    fd, aside = tempfile.mkstemp(prefix=".seen-", dir=cache)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump({"folder": str(folder.path), "stamps": folder.stamps, "content": content}, file)
        Path(aside).rename(_record(folder, cache))
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def contents_remembered(cache: Path) -> Iterator[str]:
    """Of every folder that was seen."""
    for record in cache.glob("*.seen"):
        if (seen := _read(record)) is not None:
            yield seen[1]


def _record(folder: Folder, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(str(folder.path).encode()).hexdigest()[:12]}.seen"


def _read(record: Path) -> tuple[list[Stamp], str] | None:
    """Stamps and content, or None where there is nothing to rely on: bytes decide then."""
    try:
        seen = json.loads(record.read_bytes())
        return [(str(name), int(size), int(date)) for name, size, date in seen["stamps"]], str(seen["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
