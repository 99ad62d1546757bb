"""Every benchmark still runs: those with a `--smoke` mode are run in it, as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "gpu_compile.py",
    "gpu_suite.py",
    "tune_kernels.py",
}  # run by tests of their own, under Triton's interpreter
WITH_SMOKE = sorted(
    path.name
    for path in (ROOT / "benchmarks").glob("*.py")
    if '"--smoke"' in path.read_text() and path.name not in ELSEWHERE
)


@pytest.mark.parametrize("name", WITH_SMOKE)
def test_smoke(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = [str(tmp_path / "checkpoint")] if name == "random_checkpoint.py" else []
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--smoke", *arguments], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    if "no measured tables at" in done.stderr:
        pytest.skip("no shared measured tables here")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "a benchmark prints what it measured"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peers", "lama.cpp"), "lama.cpp"),
        (
            ("--program", "lama.cpp=python"),
            "'lama.cpp=python': PEER=PATH, PEER being one of vllm, llama-server, llama.cpp",
        ),
        (("--program", "vllm=/nowhere/python"), "there is no program '/nowhere/python'"),
    ],
)
def test_a_peer_nobody_knows_is_refused(arguments: tuple[str, ...], said: str) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "serve_clients.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
