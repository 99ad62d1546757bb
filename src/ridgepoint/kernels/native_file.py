"""A file's bytes in memory for kernels to read: mapped in huge pages that stay, or read into memory of the process.

Knows chunks and their checksums, not what the bytes mean. A mapping is only given where it serves as fast as the process's
own memory (the page cache comes in huge pages) and is as safe (the pages can be locked): no step ever waits for a disk.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from ridgepoint.kernels import native

CHUNK = np.dtype([("offset", "<i8"), ("bytes", "<i8"), ("checksum", "<u8")])
SMALLEST_MAPPED_BYTES = 64 << 20  # below, a copy takes no time
TRIED_BYTES = 16 << 20  # of a mapping: enough to see whether huge pages come
TRIED_HUGE_FRAC = 0.5  # of those: where a header was read before, pages are small
LEAST_HUGE_FRAC = 0.9  # of a mapping: a page walk for every 4 KiB of the rest costs more than a copy once


class ChunkError(Exception):
    """A chunk is not what its checksum says (`errno` 0), or could not be read."""

    def __init__(self, offset: int, errno: int) -> None:
        super().__init__(os.strerror(errno) if errno else f"bytes at {offset} are not those written")
        self.offset, self.errno = offset, errno


def take(fd: int, num_bytes: int, chunks: np.ndarray) -> tuple[np.ndarray, bool]:
    """The bytes of a file whose `chunks` are whole, at their offsets, and whether they are mapped. Raises `ChunkError`."""
    if num_bytes >= SMALLEST_MAPPED_BYTES and (mapped := _map(fd, num_bytes)) is not None:
        first = chunks[chunks["offset"] < TRIED_BYTES]
        _take(-1, mapped, first)
        if huge_frac(mapped) >= TRIED_HUGE_FRAC:
            _take(-1, mapped, chunks[len(first) :])
            if huge_frac(mapped) >= LEAST_HUGE_FRAC:
                return mapped, True
        del mapped
    memory = native.allocate(num_bytes)
    _take(fd, memory, chunks)
    return memory, False


def fetch(fd: int, num_bytes: int, chunks: np.ndarray) -> None:
    """Bring a file into the page cache, in the pages that `take` likes; what is wrong with it, `take` says."""
    mapped = _map(fd, num_bytes) if num_bytes >= SMALLEST_MAPPED_BYTES else None
    if mapped is not None:
        with suppress(ChunkError):
            _take(-1, mapped, chunks)
    elif hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, num_bytes, os.POSIX_FADV_WILLNEED)


def huge_frac(memory: np.ndarray) -> float:
    """The share of a mapped file's resident pages that the system maps in huge ones."""
    resident, mine = 0, False
    with Path("/proc/self/smaps").open(encoding="ascii", errors="replace") as areas:  # long, and costly to the end
        for line in areas:
            name, _, value = line.partition(" ")
            if not name.endswith(":"):  # the line that opens an area
                mine = name.startswith(f"{memory.ctypes.data:x}-")
            elif mine and name == "Rss:":
                resident = int(value.split()[0])
            elif mine and name == "FilePmdMapped:":
                return int(value.split()[0]) / max(1, resident)
    return 0.0


def _take(fd: int, memory: np.ndarray, chunks: np.ndarray) -> None:
    chunks, error = np.ascontiguousarray(chunks, CHUNK), ctypes.c_int32()
    failed = native.library().rp_take_chunks(
        fd, memory.ctypes.data, chunks.ctypes.data, len(chunks), ctypes.byref(error)
    )
    if failed != len(chunks):
        raise ChunkError(int(chunks["offset"][failed]), error.value)


def _map(fd: int, num_bytes: int) -> np.ndarray | None:
    lib = native.library()
    address = lib.rp_map_file(fd, num_bytes)
    if not address:
        return None
    owner = (ctypes.c_uint8 * num_bytes).from_address(address)
    weakref.finalize(owner, lib.rp_unmap_file, address, num_bytes)
    memory = np.frombuffer(memoryview(owner), dtype=np.uint8)
    memory.flags.writeable = False
    return memory
