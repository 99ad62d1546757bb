"""The processes of the GPU suite: each has a time, and ends with all that it started, so that nothing is left on the GPU or on its cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

DYING_S = 10.0  # a process inside a driver that hangs may take longer, or never die; what follows does not wait for it
LATE = "ended: it took longer than its time"


def run_in_time(command: list[str], log: IO[str], limit_s: float) -> int | str:
    """Its exit code, or that it was ended. A tuner or a test left behind would compute beside what is timed next."""
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return LATE
    finally:
        end(process, signal.SIGKILL)


@contextmanager
def beside(script: Path, log: Path) -> Iterator[None]:
    """Inside, this script runs in processes of its own."""
    with log.open("w") as told:
        process = subprocess.Popen([sys.executable, str(script)], stdout=told, stderr=told, start_new_session=True)
    try:
        yield
    finally:
        end(process, signal.SIGTERM)


def end(process: subprocess.Popen, how: signal.Signals) -> None:
    """With everything in its session; what has ended may have left something."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    with suppress(subprocess.TimeoutExpired):
        process.wait(DYING_S)


def write_whole(file: Path, text: str) -> None:
    """So that whoever reads it, whenever its writer is ended, finds this or what was there before."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)
