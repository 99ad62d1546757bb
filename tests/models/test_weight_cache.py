"""The weight cache: what comes from it is what packing gives, and whatever is wrong with the file, packing is what happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgepoint.kernels import native, native_file
from ridgepoint.models import identity, packed_file, weight_cache
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.kept import cache_folder
from ridgepoint.models.load_packed import load_packed
from ridgepoint.models.packed_file import PackedFile, PackedFileError
from ridgepoint.models.weight_cache import buffers_of, load_cached
from ridgepoint.nn.context import CausalContext

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("cache") / "model", "glm4_moe")


def start(folder: Path, cache: Path | None, fmt: str | None = None) -> tuple[Decoder, str]:
    """A decoder, and what was said of the cache once it was written."""
    told: list[str] = []
    loaded = load_cached(folder, torch.bfloat16, fmt, cache, told.append, smallest_bytes=0)
    if loaded.keeping is not None:
        loaded.keeping.join()
    return loaded.decoder, "\n".join(told)


def kept(cache: Path) -> Path:
    """The only file of weights there."""
    (file,) = cache.glob("*.packed")
    return file


def same_bytes(a: Decoder, b: Decoder) -> bool:
    left, right = buffers_of(a), buffers_of(b)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", ["glm4_moe", "granitemoe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("fmt", [None, "int4-32"])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_second_start_is_the_first(
    tmp_path: Path, family: str, fmt: str | None, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:  # small files are read, and whether pages are huge depends on the file system
        monkeypatch.setattr(native_file, "SMALLEST_MAPPED_BYTES", 0)
        monkeypatch.setattr(native_file, "huge_frac", lambda memory: 1.0)
        monkeypatch.setattr(weight_cache, "SMALLEST_SHARED_BYTES", 0)
    folder = checkpoints.write(tmp_path / "model", family)
    first, told = start(folder, tmp_path / "cache", fmt)
    assert "weight cache made" in told and "(there is none yet)" in told
    second, told = start(folder, tmp_path / "cache", fmt)
    assert "weight cache used" in told
    assert same_bytes(first, second) and same_bytes(first, load_packed(folder, torch.bfloat16, fmt))
    ids = torch.arange(1, 9)
    with torch.no_grad():
        assert torch.equal(second(ids, CausalContext(1, 8)), first(ids, CausalContext(1, 8)))
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".packed", ".seen"]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_changes_are_seen_and_named(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = Path(shutil.copytree(original, tmp_path / "model")), tmp_path / "cache"
    start(folder, cache)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert "(there is none yet)" in start(folder, cache)[1]
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "layout_fingerprint", lambda fmt: f"another layout of {fmt}")
        assert "(the kernels' layout changed)" in start(folder, cache)[1]
        assert "weight cache used" in start(folder, cache)[1]
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "loader_fingerprint", lambda: "another loader")
        assert "(the kernels' layout changed)" in start(folder, cache)[1]
        patch.setattr(weight_cache, "loader_fingerprint", lambda: "yet another")
        assert "(the loader changed)" in start(folder, cache)[1]
    assert kept(cache), "a new file replaces the one it was made for"
    assert "(there is none yet)" in start(folder, cache, "int8")[1]
    assert len(list(cache.glob("*.packed"))) == 2
    assert "weight cache off: as asked" in start(folder, None)[1]


def test_bytes_decide_where_dates_changed(original: Path, tmp_path: Path) -> None:
    """A copy is served by what its original left, and one byte of a weight is a change though size and name are the same."""
    folder, cache = Path(shutil.copytree(original, tmp_path / "model")), tmp_path / "cache"
    first, _ = start(folder, cache)
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    for _ in range(2):
        decoder, told = start(folder, cache)
        assert "weight cache used" in told and same_bytes(decoder, first)
    assert "comparing took" not in told, "the new dates were noted"
    copy = Path(shutil.copytree(folder, tmp_path / "renamed"))
    assert all(word in start(copy, cache)[1] for word in ("comparing took", "weight cache used"))
    assert "comparing took" not in start(copy, cache)[1] and kept(cache)

    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    decoder, told = start(folder, cache)
    assert "(the checkpoint changed)" in told and not same_bytes(decoder, first)
    assert len(list(cache.glob("*.packed"))) == 2, "the copy still is what the original was"
    (copy / "model.safetensors").write_bytes(raw)
    assert "weight cache used" in start(copy, cache)[1]


def test_what_no_folder_holds_any_more_is_removed(original: Path, tmp_path: Path) -> None:
    folder, cache = Path(shutil.copytree(original, tmp_path / "model")), tmp_path / "cache"
    start(folder, cache)
    before, raw = kept(cache), bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    start(folder, cache)
    assert kept(cache) != before


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"stamps": [["a", "b", 1]], "content": "x"}', b"\xff"])
def test_a_damaged_record_only_costs_a_comparison(original: Path, tmp_path: Path, damage: bytes) -> None:
    start(original, tmp_path)
    (record,) = tmp_path.glob("*.seen")
    record.write_bytes(damage)
    assert all(word in start(original, tmp_path)[1] for word in ("comparing took", "weight cache used"))


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = Path(shutil.copytree(original, tmp_path / "model")), tmp_path / "cache"

    def change(*arguments: Any) -> str:
        os.utime(folder / "model.safetensors", ns=(1, 1))
        return "content"

    monkeypatch.setattr(weight_cache.identity, "content_of", change)
    assert "changed while it was read" in start(folder, cache)[1] and not list(cache.iterdir())


def test_the_content_is_found_at_leisure_and_the_same(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = identity.look_at(original)
    assert (
        identity.content_at_leisure(folder).result() == identity.content_of(folder, 1) == identity.content_of(folder, 2)
    )
    if hasattr(os, "SCHED_IDLE"):
        monkeypatch.setattr(identity, "content_of", lambda *arguments: os.sched_getscheduler(0))
        assert identity.content_at_leisure(folder).result() == os.SCHED_IDLE != os.sched_getscheduler(0)


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
    file = kept(cache)
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
    file = kept(tmp_path)
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
    file = kept(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(packed_file.os, "getuid", lambda: 12345)
        with pytest.raises(PackedFileError, match="another user"):
            PackedFile(file)
    moved = file.rename(tmp_path / "elsewhere")
    file.symlink_to(moved)
    with pytest.raises(PackedFileError, match="cannot be opened"):
        PackedFile(file)


KILLED_WRITER = """
import os, sys, numpy as np
from pathlib import Path
from ridgepoint.models import packed_file
def die(*arguments): os.kill(os.getpid(), 9)
packed_file.os.fsync = die
packed_file.write(Path(sys.argv[1]), {"a": 1}, {}, {"w": np.ones(100_000, np.uint8)})
"""


def test_a_killed_writer_leaves_the_old_file_and_its_remains_are_removed(tmp_path: Path) -> None:
    path, old = tmp_path / "x.packed", {"w": np.zeros(100_000, np.uint8)}
    packed_file.write(path, {"a": 0}, {}, old)
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    with PackedFile(path) as file:
        file.require({"a": 0})
        assert not file.take()[0]["w"].any()
    packed_file.write(path, {"a": 2}, {}, old)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_the_same_past_the_page_cache_and_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of whole pages and of less, at addresses of pages and between them, larger than what is written at once, and empty."""
    rng = np.random.default_rng(0)
    room = native.allocate(3 << 20)
    room[:] = rng.integers(0, 256, room.size, np.uint8)
    buffers = {
        "pages": room[: 1 << 20], "off by one": room[1 : (1 << 20) + 1], "odd": room[: (1 << 20) + 4095], "short": room[8:9],
        "empty": room[:0], "page": room[4096:8192],
    }  # fmt: skip
    monkeypatch.setattr(packed_file, "WRITE", 1 << 19)
    packed_file.write(tmp_path / "a", {"a": 1}, {}, buffers)
    monkeypatch.setattr(packed_file, "_past_page_cache", lambda fd: False)
    packed_file.write(tmp_path / "b", {"a": 1}, {}, buffers)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with PackedFile(tmp_path / "a") as file:
        found, _ = file.take()
    assert found.keys() == buffers.keys() and all((found[name] == data).all() for name, data in buffers.items())


def test_readers_beside_writers(tmp_path: Path) -> None:
    """Whoever reads meets one writer's whole file."""
    path, failures = tmp_path / "x.packed", []
    packed_file.write(path, {"a": 1}, {}, {"w": np.full(9_000_000, 1, np.uint8)})

    def work(value: int) -> None:
        for _ in range(4):
            try:
                if value:
                    packed_file.write(path, {"a": 1}, {}, {"w": np.full(9_000_000, value, np.uint8)})
                else:
                    with PackedFile(path) as file:
                        read = file.take()[0]["w"]
                    assert read[0] in (1, 2, 3) and (read == read[0]).all()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (0, 2, 0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and list(tmp_path.iterdir()) == [path]


TWO_STARTS = """
import sys, torch
from pathlib import Path
from ridgepoint.models.weight_cache import load_cached
for _ in range(3):
    Path(sys.argv[2]).mkdir(exist_ok=True)
    for file in Path(sys.argv[2]).glob("*.packed"):
        file.unlink(missing_ok=True)
    loaded = load_cached(Path(sys.argv[1]), torch.bfloat16, None, Path(sys.argv[2]), print, smallest_bytes=0)
    if loaded.keeping is not None:
        loaded.keeping.join()
"""


def test_two_processes_start_at_once(original: Path, tmp_path: Path) -> None:
    """Both make the file, both throw it away and make it again: neither fails, and one whole file is left."""
    command = [sys.executable, "-c", TWO_STARTS, str(original), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    decoder, told = start(original, tmp_path / "cache")
    assert "weight cache used" in told and same_bytes(decoder, load_packed(original)) and kept(tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2, "nothing is left aside"


SHORT_COMMAND = """
import sys, torch
from pathlib import Path
from ridgepoint.models import weight_cache
from ridgepoint.models.weight_cache import load_cached
last = weight_cache.look_at
def late(folder):  # the writer comes this far only when the interpreter is ending
    import threading
    if threading.current_thread() is not threading.main_thread():
        threading.main_thread().join()
    return last(folder)
weight_cache.look_at = late
load_cached(Path(sys.argv[1]), torch.bfloat16, None, Path(sys.argv[2]), print, smallest_bytes=0)
"""


def test_a_process_that_ends_writes_what_it_packed(original: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHORT_COMMAND, str(original), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    assert "weight cache kept" in done.stdout and not done.stderr
    assert "weight cache used" in start(original, tmp_path)[1]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIDGEPOINT_WEIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(None) == Path("/somewhere/ridgepoint/weights")
    assert cache_folder("/mine") == Path("/mine") and cache_folder("off") is None
    monkeypatch.setenv("RIDGEPOINT_WEIGHT_CACHE", "off")
    assert cache_folder(None) is None and cache_folder("/mine") == Path("/mine")
