"""What the engine process may use, and that freed memory stays with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgepoint.engine import machine

SRC = Path(__file__).parents[2] / "src"


def test_cores_and_memory_are_within_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
    assert machine.available_bytes() > 0
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert machine.usable_cores() == 1
    assert machine.available_bytes() == 600
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_bytes() > 600


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_not_faulted_in_again() -> None:
    """Page faults of taking, touching and freeing 16 MB ten times: all of them the first time only."""
    code = (
        "import ctypes, resource, sys\n"
        "from ridgepoint.engine.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep' and not keep_freed_memory(): sys.exit('no mallopt')\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; libc.free.argtypes = [ctypes.c_void_p]\n"
        "def once():\n"
        "    block = libc.malloc(1 << 24); ctypes.memset(block, 1, 1 << 24); libc.free(block)\n"
        "once(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): once()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, mode],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SRC)},
        )
        if "no mallopt" in done.stderr:
            pytest.skip("this libc has no mallopt")
        return int(done.stdout)

    assert faults("keep") < 100
