"""When requests are sent and how long they are: a closed loop, a Poisson process or a recorded trace. Seeded, no clock.

A trace is CSV (with a header) or JSON lines with `timestamp` (seconds), `input_len` and `output_len` (tokens).
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ridgepoint.errors import ConfigError

COLUMNS = ("timestamp", "input_len", "output_len")


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """`at_s` after the start; None sends as soon as a client is free (closed loop)."""

    at_s: float | None
    input_tokens: int
    output_tokens: int


def closed_loop(num_requests: int, input_tokens: int, output_tokens: int) -> list[Arrival]:
    return [Arrival(at_s=None, input_tokens=input_tokens, output_tokens=output_tokens)] * num_requests


def poisson(num_requests: int, rate_per_s: float, input_tokens: int, output_tokens: int, seed: int) -> list[Arrival]:
    """Exponential gaps of mean 1/rate."""
    if not (rate_per_s > 0 and math.isfinite(rate_per_s)):
        raise ConfigError(f"the request rate must be above 0 and finite, got {rate_per_s}")
    draw, now_s = random.Random(seed), 0.0
    found: list[Arrival] = []
    for _ in range(num_requests):
        found.append(Arrival(at_s=now_s, input_tokens=input_tokens, output_tokens=output_tokens))
        now_s += draw.expovariate(rate_per_s)
    return found


def read_trace(path: Path, *, limit: int | None = None, speed: float = 1.0) -> list[Arrival]:
    """Timestamps count from the first; `speed` 2 replays twice as fast."""
    if not (speed > 0 and math.isfinite(speed)):
        raise ConfigError(f"the trace's speed must be above 0, got {speed}")
    try:
        rows = list(_rows(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path} cannot be read: {error}") from error
    if not rows:
        raise ConfigError(f"trace {path} has no rows", hint="columns: " + ", ".join(COLUMNS))
    found = sorted((_arrival(path, number, row) for number, row in rows), key=lambda one: one[0])
    start_s = found[0][0]
    return [
        Arrival(at_s=(time_s - start_s) / speed, input_tokens=num_in, output_tokens=num_out)
        for time_s, num_in, num_out in found[:limit]
    ]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from ((number, dict(row)) for number, row in enumerate(csv.DictReader(file), start=2))
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"trace {path}, line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ConfigError(f"trace {path}, line {number}: an object is expected")
                yield number, row


def _arrival(path: Path, number: int, row: dict[str, object]) -> tuple[float, int, int]:
    try:
        time_s, num_in, num_out = (float(str(row[name])) for name in COLUMNS)
    except KeyError as error:
        raise ConfigError(
            f"trace {path}, line {number}: no {error.args[0]!r}", hint="columns: " + ", ".join(COLUMNS)
        ) from error
    except ValueError as error:
        raise ConfigError(f"trace {path}, line {number}: {error}") from error
    if not (math.isfinite(time_s) and 1 <= num_in < math.inf and 1 <= num_out < math.inf):
        raise ConfigError(f"trace {path}, line {number}: lengths must be at least 1 and the timestamp finite")
    return time_s, int(num_in), int(num_out)
