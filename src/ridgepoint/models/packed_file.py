"""A file of named buffers that is either whole or refused: what the weight cache keeps on disk.

Layout: magic, header length, SHA-256 of the header, the header (JSON: a key, whatever else its writer noted, and per buffer
its offset and the checksum of every chunk), then the buffers at page boundaries. Taken by all cores, each chunk checked
while it is still in a cache. Written aside, synced and renamed, so a reader never meets half a file.

Written past the page cache where the system lets that: the disk takes the bytes from where they lie, and a model that serves
meanwhile keeps its cores. Copying them into the page cache takes a core for seconds, and every step waits for its threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ridgepoint.errors import RidgepointError
from ridgepoint.kernels import native, native_file
from ridgepoint.kernels.checksum import checksum

MAGIC = b"ridgepoint packed 2\n".ljust(24, b"\0")
CHUNK = 1 << 20  # fits a core's second-level cache
PAGE = 4096
MAX_HEADER_BYTES = 64 << 20
WRITE = 4 << 20
Buffers = dict[str, np.ndarray]  # uint8, contiguous


class PackedFileError(RidgepointError):
    """The file cannot serve: it is absent, of something else, cut short or damaged."""


class PackedFile:
    """An open file with a whole header: `key` and `notes` can be trusted, the buffers are not read yet."""

    def __init__(self, path: Path) -> None:
        """Raises `PackedFileError` saying what does not hold."""
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            raise PackedFileError("there is none yet") from None
        except OSError as error:
            raise PackedFileError(f"it cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(self._fd)
            if status.st_uid != os.getuid():
                raise PackedFileError("it belongs to another user")
            header = _read_header(self._fd, status.st_size)
        except OSError as error:
            self.close()
            raise PackedFileError(f"it cannot be read: {error.strerror}") from None
        except PackedFileError:
            self.close()
            raise
        self.num_bytes: int = status.st_size
        self.key: dict[str, Any] = header["key"]
        self.notes: dict[str, Any] = header["notes"]
        self._entries: dict[str, Any] = header["buffers"]
        self._total: int = header["total"]

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: entry["bytes"] for name, entry in self._entries.items()}

    def require(self, key: dict[str, Any]) -> None:
        """Refuse a file made for another key, naming the part that differs."""
        for part, value in key.items():
            if self.key.get(part) != value:
                raise PackedFileError(f"{part} changed")

    def take(self) -> tuple[Buffers, bool]:
        """The buffers, every byte of them checked, and whether they are mapped (and then read-only)."""
        if self.num_bytes != self._total:
            raise PackedFileError(f"it is cut short: {self.num_bytes} bytes of {self._total}")
        try:
            memory, mapped = native_file.take(self._fd, self.num_bytes, self._chunks())
        except native_file.ChunkError as error:
            raise PackedFileError(f"it {'cannot be read' if error.errno else 'is damaged'}: {error}") from None
        found = {name: memory[entry["start"] :][: entry["bytes"]] for name, entry in self._entries.items()}
        return found, mapped

    def fetch(self) -> None:
        """Have the system read the file ahead of `take`, as far as it will."""
        if self.num_bytes == self._total:
            native_file.fetch(self._fd, self.num_bytes, self._chunks())

    def _chunks(self) -> np.ndarray:
        return np.array(
            [(entry["start"] + index * CHUNK, min(CHUNK, entry["bytes"] - index * CHUNK), int(expected, 16))
             for entry in self._entries.values() for index, expected in enumerate(entry["checksums"])],
            native_file.CHUNK,
        )  # fmt: skip


def write(path: Path, key: dict[str, Any], notes: dict[str, Any], buffers: Buffers) -> int:
    """Write and put in place; returns the file's bytes. Raises `OSError` (a full disk, say) and leaves nothing then."""
    header, starts, total = _header(key, notes, buffers)
    _remove_abandoned(path)
    fd, aside = _new_aside(path)
    with os.fdopen(fd, "wb") as file:
        try:
            file.truncate(total)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)  # a disk that is too full is met before the first byte
            _write_at(file.fileno(), 0, memoryview(header))
            direct, scratch = _past_page_cache(file.fileno()), native.reserve(WRITE)
            for name, data in buffers.items():
                for at in range(0, data.nbytes, WRITE):
                    piece = data[at : at + WRITE]
                    _write_at(file.fileno(), starts[name] + at, (_in_pages(piece, scratch) if direct else piece).data)
            os.fsync(file.fileno())
            aside.rename(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return total


def _past_page_cache(fd: int) -> bool:
    """Have writes to `fd` go to the disk from where they lie, if that can be; they must then be of whole pages."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except (OSError, AttributeError):  # not on this file system; not on this system
        return False
    return True


def _in_pages(piece: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """`piece` itself if it is of whole pages, else a copy that is, with zeros behind it: buffers end where a page does."""
    if piece.ctypes.data % PAGE == piece.nbytes % PAGE == 0:
        return piece
    pages = scratch[: _page_up(piece.nbytes)]
    pages[: piece.nbytes], pages[piece.nbytes :] = piece, 0
    return pages


def _write_at(fd: int, at: int, data: memoryview) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def _new_aside(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, open and locked, which says that its writer lives."""
    while True:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else somebody took it for abandoned before it was locked
            return fd, Path(name)
        os.close(fd)


def _read_header(fd: int, size: int) -> dict[str, Any]:
    fixed = os.pread(fd, len(MAGIC) + 40, 0)
    if len(fixed) < len(MAGIC) + 40 or not fixed.startswith(MAGIC):
        raise PackedFileError("it is no such file, or of another version")
    length = int.from_bytes(fixed[len(MAGIC) : len(MAGIC) + 8], "little")
    if not 0 < length <= min(size, MAX_HEADER_BYTES):
        raise PackedFileError(f"it is damaged: a header of {length} bytes")
    raw = os.pread(fd, length, len(fixed))
    if hashlib.sha256(raw).digest() != fixed[len(MAGIC) + 8 :]:
        raise PackedFileError("it is damaged: the header is not the one written")
    header: dict[str, Any] = json.loads(raw)
    return header


def _header(key: dict[str, Any], notes: dict[str, Any], buffers: Buffers) -> tuple[bytes, dict[str, int], int]:
    """The bytes before the first buffer, where each buffer starts, and the size of all."""
    sums = {
        name: [f"{checksum(data[at : at + CHUNK]):x}" for at in range(0, data.nbytes, CHUNK)]
        for name, data in buffers.items()
    }
    room, previous = PAGE, 0
    while room != previous:  # the header holds offsets that depend on its own length
        starts, at = {}, room
        for name, data in buffers.items():
            starts[name] = at
            at = _page_up(at + data.nbytes)
        entries = {n: {"start": starts[n], "bytes": data.nbytes, "checksums": sums[n]} for n, data in buffers.items()}
        raw = json.dumps({"key": key, "notes": notes, "buffers": entries, "total": at}).encode()
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
