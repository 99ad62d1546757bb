"""Start a server process, wait for what it says, read its metrics, and be sure that it is gone afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


class ServerProcess:
    """`lines` are its stderr so far; `wait_for` blocks until one matches."""

    def __init__(self, arguments: Sequence[str], *, environment: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        # Its own process group, as a service manager or a shell's job control would have it.
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | (environment or {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        try:
            self.url = self.wait_for(r"^serving \S+ on (http://[^/]+)/v1").group(1)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline_s = time.monotonic() + TIMEOUT_S
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if found := re.search(pattern, line):
                        return found
                seen = len(self.lines)
                left_s = deadline_s - time.monotonic()
                if self._ended or left_s <= 0 or not self._news.wait(left_s):
                    raise AssertionError(f"no line like {pattern!r} in:\n" + "\n".join(self.lines))

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    @property
    def engine_pid(self) -> int:
        return int(self.wait_for(r"^serving .* engine_pid=(\d+)").group(1))

    def metrics(self, **headers: str) -> dict[str, float]:
        """Every sample by its name and labels, without the model's name."""
        text = httpx.get(self.url + "/metrics", headers=headers).text
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = re.sub(r',?model_name="[^"]*"', "", name).replace("{}", "").replace("{,", "{")
                found[name] = float(value)
        return found

    def wait_for_metric(self, name: str, value: float) -> None:
        """Poll until a metric has a value: the server answers, so each poll is itself a wait."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while (now := self.metrics().get(name)) != value:
            assert time.monotonic() < deadline_s, f"{name} is {now}, not {value}"


def echo_server(folder: Path, **options: Any) -> ServerProcess:
    """Sections: echo, engine, server, limits."""
    return ServerProcess([str(Path(__file__).parent / "echo_server.py"), str(folder), json.dumps(options)])


def checkpoint_server(folder: Path) -> ServerProcess:
    """`ridgepoint serve` of a tiny checkpoint, in float32, by one thread."""
    options = ["--port", "0", "--dtype", "float32", "--threads", "1"]
    return ServerProcess(["-m", "ridgepoint.cli.main", "serve", str(folder), *options])
