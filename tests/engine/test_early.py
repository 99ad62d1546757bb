"""Fetching kept weights early: it finds what the load will ask for, says nothing, and leaves every fault to the load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import random_checkpoint
from ridgepoint.engine.early import dtype_name, fetch_early
from ridgepoint.engine.options import EngineOptions
from ridgepoint.kernels import native, native_file
from ridgepoint.models import packed_file
from ridgepoint.models.kept import fetch
from ridgepoint.models.weight_cache import load_cached

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the cache of a first start."""
    place = tmp_path_factory.mktemp("early")
    model = random_checkpoint.write(place / "model", random_checkpoint.SMOKE)
    loaded = load_cached(model, torch.bfloat16, None, place / "cache", lambda line: None, smallest_bytes=0)
    assert loaded.keeping is not None
    loaded.keeping.join()
    return model, place / "cache"


def test_what_is_fetched_is_what_the_load_takes(kept: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = kept
    (file,) = cache.glob("*.packed")
    fetched: list[int] = []
    monkeypatch.setattr(packed_file.native_file, "fetch", lambda fd, size, chunks: fetched.append(size))
    assert fetch(model, native.whole_format("bfloat16"), cache) == file and fetched == [file.stat().st_size]
    thread = fetch_early(EngineOptions(model=str(model), weight_cache=str(cache)))
    assert thread is not None
    thread.join()
    assert len(fetched) == 2
    assert fetch(model, "int8", cache) is None, "nothing is kept in that format"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_file_is_fetched_without_a_word(
    kept: tuple[Path, Path], tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = kept
    monkeypatch.setattr(native_file, "SMALLEST_MAPPED_BYTES", 0 if mapped else 1 << 62)
    (file,) = cache.glob("*.packed")
    whole = file.read_bytes()
    try:
        for damaged in (whole[:-5000] + b"x" * 5000, whole[: len(whole) // 2], whole[:10], b""):
            file.write_bytes(damaged)
            fetch(model, native.whole_format("bfloat16"), cache)
    finally:
        file.write_bytes(whole)


def test_there_may_be_nothing_to_fetch(kept: tuple[Path, Path], tmp_path: Path) -> None:
    model, cache = kept
    assert fetch_early(EngineOptions(model=str(model), weight_cache="off")) is None
    assert fetch_early(EngineOptions(model=str(model), weight_cache=str(cache), device="cuda")) is None
    assert fetch_early(EngineOptions(model="owner/name", weight_cache=str(cache))) is None
    (tmp_path / "config.json").write_text("[]")
    assert fetch_early(EngineOptions(model=str(tmp_path), weight_cache=str(cache))) is None


def test_the_type_is_the_engine_s() -> None:
    asked = EngineOptions(model="m", dtype="float32")
    assert dtype_name(asked, {"dtype": "bfloat16"}) == ("float32", "as asked")
    left = EngineOptions(model="m")
    assert dtype_name(left, {"torch_dtype": "float32"})[0] == "float32"
    assert dtype_name(left, {"torch_dtype": 3})[0] == dtype_name(left, {})[0] == "bfloat16"


def test_it_does_not_wait_for_torch() -> None:
    code = "import sys, ridgepoint.engine.early; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
