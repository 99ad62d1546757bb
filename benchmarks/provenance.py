"""Where a benchmark's figures came from: the question, the command, the commit and the machine, the same in every result."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The model name the kernel reports, with the vector extensions that matter here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines[: lines.index("")])}
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    flags = facts.get("flags", "").split()
    return f"{facts.get('model name', platform.machine())} ({' '.join(flag for flag in wanted if flag in flags)})"


def provenance(doc: str | None) -> dict[str, Any]:
    """`doc` is the benchmark's docstring, whose first line is its question."""
    script = Path(sys.argv[0])
    commit = "unknown"
    if shutil.which("git"):
        told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = told.stdout.strip() or commit
    return {
        "question": (doc or "").strip().splitlines()[0],
        "command": shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "commit": commit,
        "hardware": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        },
    }


def save(file: Path | None, result: dict[str, Any]) -> None:
    """Write `result` as JSON where the user asked for it; None writes nothing."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
