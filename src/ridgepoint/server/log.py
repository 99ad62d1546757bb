"""One line per event on stderr, `key=value`, safe to grep: values that need it are JSON strings, so no value can forge a line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
_ORDER: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Log:
    """Writes to `stream` (stderr by default) what is at least `level`. A closed stream is not an error."""

    def __init__(self, level: Level = "info", stream: TextIO | None = None) -> None:
        self._least = _ORDER[level]
        self._stream = stream

    def __call__(self, level: Level, event: str, **fields: Any) -> None:
        if _ORDER[level] < self._least:
            return
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s * 1000) % 1000:03d}Z"
        pairs = {"ts": stamp, "level": level, "event": event, **fields}
        line = " ".join(f"{key}={_value(value)}" for key, value in pairs.items() if value is not None)
        try:
            print(line, file=self._stream or sys.stderr, flush=True)
        except (BrokenPipeError, ValueError):
            self._least = _ORDER["error"] + 1


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text.isascii() and text.isprintable() and not any(char in text for char in ' "=\\') and text
    return text if plain else json.dumps(text)
