"""A file's bytes in memory: mapped or read they are the same, and nothing damaged gets through either way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from native_support import needs_native

from ridgepoint.kernels import native_file
from ridgepoint.kernels.checksum import checksum
from ridgepoint.kernels.native_file import CHUNK, ChunkError, take

pytestmark = needs_native
SIZE, STEP = 11_000_000, 1 << 20
HOW = {"mapped": 1.0, "read": 0.0}


@pytest.fixture(params=list(HOW))
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file is mapped, by what is believed of its pages (a file system may give huge ones or not)."""
    monkeypatch.setattr(native_file, "SMALLEST_MAPPED_BYTES", 0)
    monkeypatch.setattr(native_file, "huge_frac", lambda memory: HOW[request.param])
    return str(request.param)


def file_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    path.write_bytes(data.tobytes())
    places = [(at, min(STEP, SIZE - at)) for at in range(0, SIZE, STEP)]
    return data, np.array([(at, n, checksum(data[at : at + n])) for at, n in places], CHUNK)


def taken(path: Path, chunks: np.ndarray) -> tuple[np.ndarray, bool]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return take(fd, SIZE, chunks)
    finally:
        os.close(fd)


def test_the_bytes_outlive_the_file(tmp_path: Path, how: str) -> None:
    data, chunks = file_of(tmp_path / "x")
    memory, mapped = taken(tmp_path / "x", chunks)
    if how == "mapped" and not mapped:
        pytest.skip("locking memory is not granted here")
    assert mapped == (how == "mapped")
    assert memory.flags.writeable != mapped and memory.ctypes.data % 4096 == 0
    (tmp_path / "x").unlink()
    view = memory[5_000_000:]
    del memory
    assert np.array_equal(view, data[5_000_000:])


@pytest.mark.parametrize("at", [0, STEP, 9_000_000, SIZE - 1])
def test_a_changed_bit_is_found_and_placed(tmp_path: Path, how: str, at: int) -> None:
    data, chunks = file_of(tmp_path / "x")
    data[at] ^= 1
    (tmp_path / "x").write_bytes(data.tobytes())
    with pytest.raises(ChunkError, match="not those written") as raised:
        taken(tmp_path / "x", chunks)
    assert raised.value.offset == at // STEP * STEP and raised.value.errno == 0


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, chunks = file_of(tmp_path / "x")
    fd = os.open(tmp_path / "x", os.O_WRONLY)
    try:
        with pytest.raises(ChunkError, match="Bad file descriptor") as raised:
            take(fd, SIZE, chunks)
    finally:
        os.close(fd)
    assert raised.value.errno == errno.EBADF


def test_the_share_of_huge_pages_is_read_from_the_system(tmp_path: Path) -> None:
    assert native_file.huge_frac(np.zeros(1, np.uint8)) == 0.0
    data, _ = file_of(tmp_path / "x")
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        mapped = native_file._map(fd, SIZE)
    finally:
        os.close(fd)
    if mapped is None:
        pytest.skip("locking memory is not granted here")
    assert native_file.huge_frac(mapped) == 0.0, "nothing is resident yet"
    assert np.array_equal(mapped, data) and 0.0 <= native_file.huge_frac(mapped) <= 1.0
