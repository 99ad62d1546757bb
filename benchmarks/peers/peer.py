"""What a benchmark asks of an engine, and how it asks: one JSON object a line to a child process, one back.

Every engine gets the same model, the same token ids and the same number of threads, and answers

    prefill(prompts)               seconds to the first token of one prompt
    decode(prompts, steps)         seconds of each of `steps` steps, all sequences together, after their prefill
    greedy(prompt, steps)          the greedy tokens, to see that it computes the same model
    features()                     the instruction set in use, in its own words (asked only where that is restricted)
    rates()                        of ridgepoint alone: what the machine could do around its last answer
    warm(prompt, seconds)          prompts for so long: engines that waited their turn find cores asleep and memory slow

A child waits on its standard input between questions, so two engines can take turns without disturbing each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

# glibc returns large blocks to the kernel on free and faults them in again on the next call, which costs torch 1.2 to
# 2.1x on CPU. Every engine timed here runs without that.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class Engine(Protocol):
    """One engine, loaded."""

    def prefill(self, prompt: list[int]) -> float: ...
    def decode(self, prompts: list[list[int]], steps: int) -> list[float]: ...
    def greedy(self, prompt: list[int], steps: int) -> list[int]: ...


def answer(build: Callable[[], Engine]) -> None:
    """A child's main loop. Whatever the engine prints goes to stderr, so stdout carries answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = build()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        asked, arguments = question["ask"], question["arguments"]
        result = warm(engine, *arguments) if asked == "warm" else getattr(engine, asked)(*arguments)
        print(json.dumps(result), file=answers, flush=True)


def warm(engine: Engine, prompt: list[int], seconds: float) -> int:
    """How many times it computed the prompt."""
    times, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        engine.prefill(prompt)
        times += 1
    return times


class Peer:
    """The parent's end of one engine."""

    def __init__(self, name: str, python: str, script: Path, arguments: list[str], threads: int) -> None:
        self.name = name
        environment = os.environ | MALLOC_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._read() == "ready"

    def ask(self, what: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": what, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
