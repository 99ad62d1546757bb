"""What a run says: a progress bar (or plain lines) on stderr, and one JSON object a line in the log.

Knows nothing of tensors. Invariant: the log is append-only and each line is whole, so a run killed at any time leaves a
readable log, and the bar and the log say the same numbers.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ridgepoint import units
from ridgepoint.errors import TrainingError


class RunLog:
    """`with RunLog(...) as log`: `log.step(...)` for numbers, `log.event(...)` for what happened."""

    def __init__(self, path: Path, *, total_steps: int, done_steps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._total, self._done = total_steps, done_steps

    def __enter__(self) -> RunLog:
        if sys.stderr.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[numbers]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, completed=self._done, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        line, end = json.dumps(record).encode() + b"\n", os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise TrainingError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def step(self, record: dict[str, Any]) -> None:
        """Numbers after `record["step"]` steps."""
        self._write(record)
        numbers = (
            f"{record['bits_per_byte']:.3f} bits/byte (training)  {units.si(record['tokens_per_s'], 'tokens/s')}"
            f"  {units.si(record['model_flops_per_s'], 'FLOP/s')}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], numbers=numbers)
        else:
            print(f"step {record['step']}/{self._total}  {numbers}  lr {record['lr']:.2e}", file=sys.stderr, flush=True)

    def event(self, what: str, **facts: Any) -> None:
        self._write({"event": what, **facts})
        text = "  ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
        )
        if self._bar is not None:
            self._bar.console.print(f"{what}: {text}", highlight=False)
        else:
            print(f"{what}: {text}", file=sys.stderr, flush=True)
