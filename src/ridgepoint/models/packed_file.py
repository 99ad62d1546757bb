"""A file of named buffers that is either whole or refused: what the weight cache keeps on disk.

Layout: magic, header length, SHA-256 of the header, the header (JSON: a key, and per buffer its offset and the checksum of
every chunk), then the buffers at page boundaries. Read by all cores straight into the buffers that kernels use, each chunk
checked while it is still in a cache. Written aside and renamed, so a reader never meets half a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ridgepoint.errors import RidgepointError
from ridgepoint.kernels.checksum import checksum

MAGIC = b"ridgepoint packed 1\n".ljust(24, b"\0")
CHUNK = 4 << 20  # fits a core's second-level cache together with little else
PAGE = 4096
MAX_HEADER_BYTES = 64 << 20
Buffers = dict[str, np.ndarray]  # uint8, contiguous


class PackedFileError(RidgepointError):
    """The file cannot serve: it is absent, of something else, cut short or damaged."""


def write(path: Path, key: dict[str, Any], buffers: Buffers, threads: int) -> int:
    """Write and put in place; returns the file's bytes. Raises `OSError` (a full disk, say) and leaves nothing then."""
    header, starts, total = _header(key, buffers, threads)
    _remove_abandoned(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with aside.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # says that its writer lives
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)  # a disk that is too full is met before the first byte
            file.write(header)
            for name, data in buffers.items():
                file.seek(starts[name])
                file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
            aside.rename(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return total


def read(path: Path, key: dict[str, Any], buffers: Buffers, threads: int) -> int:
    """Fill `buffers` from the file and return its bytes. Raises `PackedFileError` saying what does not hold; buffers may be
    partly written then."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise PackedFileError("there is none yet") from None
    except OSError as error:
        raise PackedFileError(f"it cannot be opened: {error.strerror}") from None
    try:
        return _read(fd, key, buffers, threads)
    except OSError as error:
        raise PackedFileError(f"it cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _read(fd: int, key: dict[str, Any], buffers: Buffers, threads: int) -> int:
    status = os.fstat(fd)
    if status.st_uid != os.getuid():
        raise PackedFileError("it belongs to another user")
    header = _read_header(fd, status.st_size)
    for part, value in key.items():
        if header["key"].get(part) != value:
            raise PackedFileError(f"{part} changed")
    entries = header["buffers"]
    if {name: entry["bytes"] for name, entry in entries.items()} != {name: b.nbytes for name, b in buffers.items()}:
        raise PackedFileError("its weights are others")
    if status.st_size != header["total"]:
        raise PackedFileError(f"it is cut short: {status.st_size} bytes of {header['total']}")

    def one(chunk: tuple[str, int, int, int]) -> None:
        name, start, at, expected = chunk
        view = buffers[name][at : at + CHUNK]
        _fill(fd, view.data, start + at)
        if checksum(view) != expected:
            raise PackedFileError(f"it is damaged: bytes at {start + at} are not those written")

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, _chunks_of(entries)):
            pass
    return status.st_size


def _chunks_of(entries: dict[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    for name, entry in entries.items():
        for index, expected in enumerate(entry["checksums"]):
            yield name, entry["start"], index * CHUNK, int(expected, 16)


def _read_header(fd: int, size: int) -> dict[str, Any]:
    fixed = os.pread(fd, len(MAGIC) + 40, 0)
    if len(fixed) < len(MAGIC) + 40 or not fixed.startswith(MAGIC):
        raise PackedFileError("it is no such file, or of another version")
    length = int.from_bytes(fixed[len(MAGIC) : len(MAGIC) + 8], "little")
    if not 0 < length <= min(size, MAX_HEADER_BYTES):
        raise PackedFileError(f"it is damaged: a header of {length} bytes")
    raw = bytearray(length)
    _fill(fd, memoryview(raw), len(fixed))
    if hashlib.sha256(raw).digest() != fixed[len(MAGIC) + 8 :]:
        raise PackedFileError("it is damaged: the header is not the one written")
    header: dict[str, Any] = json.loads(raw)
    return header


def _fill(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise PackedFileError(f"it is cut short: nothing at byte {offset + done}")
        done += count


def _header(key: dict[str, Any], buffers: Buffers, threads: int) -> tuple[bytes, dict[str, int], int]:
    """The bytes before the first buffer, where each buffer starts, and the size of all."""
    with ThreadPoolExecutor(threads) as pool:
        sums = {
            name: [f"{one:x}" for one in pool.map(checksum, [data[at : at + CHUNK] for at in range(0, data.nbytes, CHUNK)])]
            for name, data in buffers.items()
        }  # fmt: skip
    room, previous = PAGE, 0
    while room != previous:  # the header holds offsets that depend on its own length
        starts, at = {}, room
        for name, data in buffers.items():
            starts[name] = at
            at = _page_up(at + data.nbytes)
        entries = {n: {"start": starts[n], "bytes": data.nbytes, "checksums": sums[n]} for n, data in buffers.items()}
        raw = json.dumps({"key": key, "buffers": entries, "total": at}).encode()
        previous, room = room, max(room, _page_up(len(MAGIC) + 40 + len(raw)))
    return MAGIC + len(raw).to_bytes(8, "little") + hashlib.sha256(raw).digest() + raw, starts, at


def _page_up(at: int) -> int:
    return -(-at // PAGE) * PAGE


def _remove_abandoned(path: Path) -> None:
    """What writers of this file left that were killed: nobody holds their lock."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        try:
            with left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink(missing_ok=True)
        except OSError:
            continue  # being written now, or gone already
