"""Send the requests, watch every token arrive, and keep what happened. Judges nothing.

Open loop (arrivals with a time): a request is sent at its time whatever the server does, so a slow server cannot hide
its queue. Closed loop: `concurrency` clients, each sending its next request when its last has ended.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ridgepoint.errors import ConfigError, MissingExtraError, RidgepointError
from ridgepoint.server.backends import events_of, refusal
from ridgepoint.server.bench.arrivals import Arrival

TEXT_CHARS_PER_TOKEN = 4  # where a text file is cut; the server's own count is what is reported


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how to ask. `root` ends in /v1."""

    root: str
    model: str
    api_key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout_s: float = 600.0


@dataclass(kw_only=True)
class Outcome:
    """One request. Times are seconds from the run's start; `text_times_s` has one entry per event with text."""

    due_s: float
    sent_s: float = 0.0
    ended_s: float = 0.0
    text_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


class Prompts:
    """Prompt i of the run, always the same for a seed: random token ids below `vocab_size`, or a slice of a text.

    The first `shared_tokens` of random prompts are the same for all, for a server's prefix cache to find.
    """

    def __init__(self, *, seed: int, vocab_size: int, shared_tokens: int = 0, text: str | None = None) -> None:
        self._seed = seed
        self._text = text
        self._vocab_size = vocab_size
        self._shared = self._draw(random.Random(f"{seed}:shared"), shared_tokens)

    def prompt(self, index: int, num_tokens: int) -> str | list[int]:
        draw = random.Random(f"{self._seed}:{index}")
        if self._text is None:
            shared = self._shared[: num_tokens - 1]
            return shared + self._draw(draw, num_tokens - len(shared))
        num_chars = num_tokens * TEXT_CHARS_PER_TOKEN
        start = draw.randrange(max(1, len(self._text) - num_chars))
        return self._text[start : start + num_chars]

    def _draw(self, draw: random.Random, count: int) -> list[int]:
        return [draw.randrange(self._vocab_size) for _ in range(count)]


def read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    if not text.strip():
        raise ConfigError(f"{path} is empty")
    return text


async def drive(
    target: Target,
    arrivals: Sequence[Arrival],
    prompts: Prompts,
    *,
    concurrency: int | None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Outcomes in the order of `arrivals`. `concurrency` bounds the requests in flight (None: no bound)."""
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError("httpx", "serve", "benchmarking a server") from error
    headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(target.timeout_s, connect=10.0, pool=None)
    gate = asyncio.Semaphore(concurrency) if concurrency else None
    start_s = time.perf_counter()
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as http:

        async def one(index: int, arrival: Arrival) -> Outcome:
            if arrival.at_s is not None:
                await asyncio.sleep(start_s + arrival.at_s - time.perf_counter())
            outcome = Outcome(due_s=arrival.at_s or 0.0)
            if gate is not None:
                await gate.acquire()
            try:
                if arrival.at_s is None:
                    outcome.due_s = time.perf_counter() - start_s
                await _ask(http, target, prompts.prompt(index, arrival.input_tokens), arrival, outcome, start_s)
            finally:
                if gate is not None:
                    gate.release()
            on_end(outcome)
            return outcome

        return list(await asyncio.gather(*(one(index, arrival) for index, arrival in enumerate(arrivals))))


async def _ask(
    http: Any, target: Target, prompt: str | list[int], arrival: Arrival, outcome: Outcome, start_s: float
) -> None:
    body: dict[str, Any] = {
        "model": target.model, "prompt": prompt, "max_tokens": arrival.output_tokens, "stream": True,
        "temperature": target.temperature, "stream_options": {"include_usage": True},
    }  # fmt: skip
    if target.ignore_eos:
        body["ignore_eos"] = True
    outcome.sent_s = time.perf_counter() - start_s
    try:
        async with http.stream("POST", target.root + "/completions", json=body) as response:
            if response.status_code != 200:
                raise refusal(response.status_code, await response.aread())
            async for event in events_of(response.aiter_lines()):
                _take(event, outcome, time.perf_counter() - start_s)
        if outcome.finish_reason is None:
            outcome.error = "the stream ended without a finish reason"
    except RidgepointError as error:
        outcome.error = error.message
    except Exception as error:  # whatever the network did: kept by name, so that a report can count it
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.ended_s = time.perf_counter() - start_s


def _take(event: dict[str, Any], outcome: Outcome, now_s: float) -> None:
    for choice in event.get("choices") or []:
        if choice.get("text"):
            outcome.text_times_s.append(now_s)
        outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason
    usage = event.get("usage")
    if usage:
        outcome.prompt_tokens = usage.get("prompt_tokens") or 0
        outcome.output_tokens = usage.get("completion_tokens") or 0
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def json_lines(outcomes: Sequence[Outcome]) -> str:
    """One line per request, for anybody's own arithmetic."""
    from dataclasses import asdict

    return "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
