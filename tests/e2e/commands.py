"""Commands of ridgepoint as processes."""

from __future__ import annotations

import os
import subprocess
import sys

from serving import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "COLUMNS": "160"}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ridgepoint.cli.main", *arguments], env=ENVIRONMENT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments: str, stdin: str = "", code: int = 0) -> tuple[str, str]:
    process = start(*arguments)
    out, err = process.communicate(stdin, timeout=60)
    assert process.returncode == code and "Traceback" not in err, err
    return out, err
