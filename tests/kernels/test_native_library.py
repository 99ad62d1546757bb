"""The library itself: forcing ISAs, threads and container limits, and life without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_support import needs_native

import ridgepoint
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native

SRC = str(Path(ridgepoint.__file__).parents[1])


def _python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": SRC, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@needs_native
def test_the_best_isa_is_the_default_and_any_other_can_be_forced() -> None:
    supported = native.supported_isas()
    assert supported[0] == "portable"
    if "RIDGEPOINT_ISA" not in os.environ:
        assert native.isa() == supported[-1]
    for name in supported:
        with native.forced_isa(name):
            assert native.isa() == name
        assert _python("from ridgepoint.kernels import native; print(native.isa())", RIDGEPOINT_ISA=name) == name
    with pytest.raises(ConfigError, match="unknown"), native.forced_isa("sse9"):
        pass


@needs_native
def test_without_the_library_ops_run_in_torch() -> None:
    code = (
        "import torch; from ridgepoint.kernels import native; from ridgepoint.kernels.norm import rms_norm\n"
        "print(native.available(), native.load_error(), rms_norm(torch.ones(1, 4), torch.ones(4), 0.0).tolist())"
    )
    assert _python(code, RIDGEPOINT_NATIVE="0") == "False switched off by RIDGEPOINT_NATIVE [[1.0, 1.0, 1.0, 1.0]]"


@needs_native
def test_packing_without_the_library_says_why() -> None:
    code = (
        "import torch; from ridgepoint.kernels.packed import pack\n"
        "try: pack(torch.zeros(2, 2))\nexcept Exception as error: print(type(error).__name__, error)"
    )
    assert "NativeError" in _python(code, RIDGEPOINT_NATIVE="0")
    assert "cannot be loaded" in _python(code, RIDGEPOINT_NATIVE="/nowhere/lib.so")


@needs_native
def test_threads_are_those_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nfrom ridgepoint.kernels import native; print(native.num_threads())"
    assert _python(code) == "1"
    assert (
        _python("from ridgepoint.kernels import native; print(native.num_threads())", RIDGEPOINT_NUM_THREADS="3") == "3"
    )
    with pytest.raises(ConfigError, match="threads=0"):
        native.set_num_threads(0)


@needs_native
def test_a_forked_child_can_use_the_pool() -> None:
    code = (
        "import os, torch\nfrom ridgepoint.kernels.norm import rms_norm\n"
        "x = torch.ones(64, 64); rms_norm(x, x[0], 0.0)\n"
        "child = os.fork()\nif child == 0:\n  rms_norm(x, x[0], 0.0); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert _python(code, RIDGEPOINT_NUM_THREADS="2") == "7"


def test_a_cpu_quota_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert native._ratio(tmp_path / "cpu.max") == [1.5]
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert native._ratio(tmp_path / "cpu.max") == []
    (tmp_path / "quota").write_text("-1\n")
    (tmp_path / "period").write_text("100000\n")
    assert native._ratio(tmp_path / "quota", tmp_path / "period") == []
    monkeypatch.setattr(native, "_cgroup_quota_cores", lambda: 0.5)
    assert native.usable_cores() == 1


@needs_native
def test_memory_is_zeroed_and_outlives_its_first_name() -> None:
    view = native.allocate(3 << 20)[5:]
    assert view.sum() == 0
    view[:] = 1
    assert int(view.sum()) == (3 << 20) - 5


def test_a_probe_reads_what_was_written_and_refuses_less_than_a_piece():
    probe = native.ReadProbe(native.ReadProbe.PIECE_BYTES * 2 + 100)
    assert probe.bytes_per_s() > 0
    assert native.measure_read_bytes_per_s(1 << 20, 2) > 0
    with pytest.raises(ConfigError, match="at least 262144"):
        native.ReadProbe(1000)
