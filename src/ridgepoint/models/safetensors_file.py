"""One safetensors file: its header checked in full, its tensors as views of a memory map.

The format is eight bytes of header length, a JSON header, then the data. Reading it here, and not through the library,
lets every fault name the tensor and the file, and lets a tensor's pages go as soon as they are copied, so that loading
never holds the file and the weights at once. Nothing is executed and nothing outside the declared ranges is touched.
"""

from __future__ import annotations

import json
import mmap
import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ridgepoint.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
PAGE = mmap.PAGESIZE


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor as the header declares it; `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """An open file. `tensor` gives a read-only view; `release` lets its pages go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._size = file.seek(0, 2)
                if self._size < 8:
                    raise CheckpointError(f"{path}: truncated: {self._size} bytes are no safetensors file")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        self.entries = _entries(path, self._map, self._size)

    def tensor(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{self.path}: tensor {name!r} has type {entry.dtype}; allowed: {', '.join(DTYPES)}")
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the map is read-only, and nobody writes to these views
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.stop - entry.start, offset=entry.start)
        if entry.start % max(1, dtype.itemsize):
            raw = raw.clone()  # a header of odd length leaves data unaligned
        return raw.view(dtype).view(entry.shape)

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to read this part of the file now: faults alone fetch a cold map at a tenth of a disk's pace."""
        start, stop = start // PAGE * PAGE, min(stop, self._size)
        if stop > start and hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def release(self, name: str) -> None:
        """Drop the mapped pages that lie wholly inside the tensor; a later read would fault them in again."""
        entry = self.entries[name]
        start, stop = -(-entry.start // PAGE) * PAGE, entry.stop // PAGE * PAGE
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _entries(path: Path, data: mmap.mmap, size: int) -> dict[str, Entry]:
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES or 8 + header_bytes > size:
        raise CheckpointError(f"{path}: corrupt or truncated: a header of {header_bytes} bytes in a file of {size}")
    try:
        header = json.loads(data[8 : 8 + header_bytes].decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt header: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt header: {type(header).__name__} instead of an object")
    header.pop("__metadata__", None)
    base = 8 + header_bytes
    entries = {name: _entry(path, name, value, base, size) for name, value in header.items()}
    end = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise CheckpointError(
                f"{path}: tensor {name!r} starts at byte {entry.start}, but the one before ends at {end}"
            )
        end = entry.stop
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes follow the last tensor")
    return entries


def _entry(path: Path, name: str, value: Any, base: int, size: int) -> Entry:
    try:
        dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: corrupt header: tensor {name!r} is declared as {value!s:.200}")
    if base + stop > size:
        raise CheckpointError(f"{path}: truncated: tensor {name!r} ends at byte {base + stop}, the file at {size}")
    torch_dtype = DTYPES.get(dtype)
    if torch_dtype is not None and prod(shape) * torch_dtype.itemsize != stop - start:
        raise CheckpointError(f"{path}: tensor {name!r} of {dtype} {list(shape)} is given {stop - start} bytes")
    return Entry(dtype=dtype, shape=shape, start=base + start, stop=base + stop)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
