"""The weight cache: what comes from it is what packing gives, and whatever is wrong with the file, packing is what happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgepoint.kernels import native
from ridgepoint.models import packed_file, weight_cache
from ridgepoint.models.checkpoint import open_checked
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.load_packed import load_packed
from ridgepoint.models.packed_file import PackedFileError
from ridgepoint.models.weight_cache import buffers_of, cache_folder, load_cached

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("cache") / "model", "glm4_moe")


def start(folder: Path, cache: Path | None, fmt: str | None = None) -> tuple[Decoder, str]:
    """A decoder, and what was said of the cache."""
    told: list[str] = []
    source, config = open_checked(folder)
    decoder, _ = load_cached(source, config, torch.bfloat16, fmt, cache, told.append, smallest_bytes=0)
    return decoder, "\n".join(told)


def same_bytes(a: Decoder, b: Decoder) -> bool:
    left, right = buffers_of(a), buffers_of(b)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", ["glm4_moe", "granitemoe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("fmt", [None, "int4-32"])
def test_the_second_start_is_the_first(tmp_path: Path, family: str, fmt: str | None) -> None:
    folder = checkpoints.write(tmp_path / "model", family)
    first, told = start(folder, tmp_path / "cache", fmt)
    assert "weight cache made" in told and "(there is none yet)" in told
    second, told = start(folder, tmp_path / "cache", fmt)
    assert "weight cache used" in told
    assert same_bytes(first, second) and same_bytes(first, load_packed(folder, torch.bfloat16, fmt))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".packed"]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_changes_are_seen_and_named(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder, cache = Path(shutil.copytree(original, tmp_path / "model")), tmp_path / "cache"
    start(folder, cache)
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert "(the checkpoint changed)" in start(folder, cache)[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert "(the checkpoint changed)" in start(folder, cache)[1]
    monkeypatch.setattr(weight_cache, "layout_fingerprint", lambda fmt: f"another layout of {fmt}")
    assert "(the kernels' layout changed)" in start(folder, cache)[1]
    assert "weight cache used" in start(folder, cache)[1]
    assert "(there is none yet)" in start(folder, cache, "int8")[1]
    assert len(list(cache.iterdir())) == 2, "a new file replaces the one it was made for"
    assert "weight cache off: as asked" in start(folder, None)[1]


def test_the_fingerprint_is_of_the_layout() -> None:
    formats = ("bf16", "f32", "int8", "int4-32", "int4-128", "mxfp4", "fp8")
    prints = {weight_cache.layout_fingerprint(fmt) for fmt in formats}
    assert len(prints) == len(formats)
    before = weight_cache.layout_fingerprint("int8")
    weight_cache.layout_fingerprint.cache_clear()
    with native.forced_isa("portable"):
        assert weight_cache.layout_fingerprint("int8") == before, "one layout for every ISA, so one file"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_made_anew(original: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere, or any byte changed: packing happens, the reason is said, and the next start has a whole file."""
    cache = tmp_path / "cache"
    want, _ = start(original, cache)
    (file,) = cache.iterdir()
    raw = bytearray(file.read_bytes())
    header = len(packed_file.MAGIC) + 40 + int.from_bytes(raw[24:32], "little")
    total = len(raw)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, total - 1)) :]
    else:
        at = data.draw(st.one_of(st.integers(0, header - 1), st.integers(packed_file.PAGE, total - 1)))
        raw[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(raw)
    decoder, told = start(original, cache)
    assert same_bytes(decoder, want)
    # Padding between buffers is nobody's: a change there is no damage.
    assert "weight cache used" in told or any(word in told for word in ("it is damaged", "it is cut short", "it is no such file"))  # fmt: skip
    if len(raw) < total:
        assert "weight cache made" in told
    assert "weight cache used" in start(original, cache)[1]


def test_every_byte_of_the_weights_is_checked(original: Path, tmp_path: Path) -> None:
    decoder, _ = start(original, tmp_path)
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    needle = buffers_of(decoder)["layers.1.ffn.experts.w_down_EDF"].tobytes()
    at = raw.index(needle) + len(needle) // 2
    file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert "(it is damaged: bytes at" in start(original, tmp_path)[1]


def test_a_full_disk_is_said_and_served_without(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed_file.os, "posix_fallocate", full)
        decoder, told = start(original, tmp_path / "cache")
    assert "not kept" in told and "No space left on device" in told
    assert same_bytes(decoder, load_packed(original)) and not list((tmp_path / "cache").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "SPARE_BYTES", 1 << 62)
        assert "free for" in start(original, tmp_path / "cache")[1]
    (tmp_path / "file").write_text("")
    assert "not kept" in start(original, tmp_path / "file")[1]


def test_a_link_or_another_user_is_not_trusted(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(original, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(packed_file.os, "getuid", lambda: 12345)
        with pytest.raises(PackedFileError, match="another user"):
            packed_file.read(file, {}, {}, 1)
    moved = file.rename(tmp_path / "elsewhere")
    file.symlink_to(moved)
    with pytest.raises(PackedFileError, match="cannot be opened"):
        packed_file.read(file, {}, {}, 1)


KILLED_WRITER = """
import os, sys, numpy as np
from pathlib import Path
from ridgepoint.models import packed_file
def die(*arguments): os.kill(os.getpid(), 9)
packed_file.os.fsync = die
packed_file.write(Path(sys.argv[1]), {"a": 1}, {"w": np.ones(100_000, np.uint8)}, 1)
"""


def test_a_killed_writer_leaves_the_old_file_and_its_remains_are_removed(tmp_path: Path) -> None:
    path, old = tmp_path / "x.packed", {"w": np.zeros(100_000, np.uint8)}
    packed_file.write(path, {"a": 0}, old, 1)
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    read = {"w": np.ones(100_000, np.uint8)}
    packed_file.read(path, {"a": 0}, read, 2)
    assert not read["w"].any()
    packed_file.write(path, {"a": 2}, old, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_readers_beside_a_writer(tmp_path: Path) -> None:
    """Whoever reads meets one writer's whole file. (Writers are told apart by process, so here one thread writes.)"""
    path, failures = tmp_path / "x.packed", []
    packed_file.write(path, {"a": 1}, {"w": np.full(9_000_000, 1, np.uint8)}, 1)

    def work(value: int) -> None:
        for _ in range(4):
            try:
                if value:
                    packed_file.write(path, {"a": 1}, {"w": np.full(9_000_000, value, np.uint8)}, 1)
                else:
                    read = {"w": np.zeros(9_000_000, np.uint8)}
                    packed_file.read(path, {"a": 1}, read, 2)
                    assert read["w"][0] in (1, 2) and (read["w"] == read["w"][0]).all()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (0, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


TWO_STARTS = """
import sys, torch
from pathlib import Path
from ridgepoint.models.checkpoint import open_checked
from ridgepoint.models.weight_cache import load_cached
for _ in range(3):
    Path(sys.argv[2]).mkdir(exist_ok=True)
    for file in Path(sys.argv[2]).glob("*.packed"):
        file.unlink(missing_ok=True)
    load_cached(*open_checked(Path(sys.argv[1])), torch.bfloat16, None, Path(sys.argv[2]), print, smallest_bytes=0)
"""


def test_two_processes_start_at_once(original: Path, tmp_path: Path) -> None:
    """Both make the file, both throw it away and make it again: neither fails, and one whole file is left."""
    command = [sys.executable, "-c", TWO_STARTS, str(original), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    (file,) = (tmp_path / "cache").iterdir()
    decoder, told = start(original, tmp_path / "cache")
    assert "weight cache used" in told and same_bytes(decoder, load_packed(original)) and file.suffix == ".packed"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIDGEPOINT_WEIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(None) == Path("/somewhere/ridgepoint/weights")
    assert cache_folder("/mine") == Path("/mine") and cache_folder("off") is None
    monkeypatch.setenv("RIDGEPOINT_WEIGHT_CACHE", "off")
    assert cache_folder(None) is None and cache_folder("/mine") == Path("/mine")
