"""One sequence from prompt ids to text: submits to the engine, turns its tokens into text, ends it at a stop string.

Used by the HTTP handlers and by the command line. Knows the engine's protocol and `engine.text`; knows no HTTP.
Invariant: whoever leaves a `Generation` early has cancelled it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from ridgepoint.engine.protocol import Grammar, Output, StepReport, Submit, TokenLogprobs
from ridgepoint.engine.text import TextRules, TokenBytes
from ridgepoint.errors import EngineError
from ridgepoint.sched.params import SamplingParams
from ridgepoint.server.answer import reader
from ridgepoint.server.harmony.reader import Harmony
from ridgepoint.server.parts import Part, Told
from ridgepoint.server.reasoning.reader import Reasoning


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that serving needs."""

    stats: StepReport | None

    @property
    def ready(self) -> Any: ...
    @property
    def alive(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def room(self) -> int: ...
    async def start(self) -> Any: ...
    def submit(self, submit: Submit) -> Any: ...
    async def close(self) -> None: ...
    async def wait_ended(self) -> EngineError | None: ...


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One sequence to generate. `params.max_tokens` 0 asks for the prompt's log-probabilities alone."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    rules: TextRules
    salt: bytes = b""
    grammar: Grammar | None = None
    shown_ids: frozenset[int] = frozenset()  # special tokens that are text all the same
    harmony: Harmony | None = None  # how to read an answer that is written in it
    reasoning: Reasoning | None = None  # or one that reasons between tags


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """One token of the output: where its text begins, and its log-probabilities if they were asked for."""

    token_id: int
    start: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What became final with one engine output: parts, and of them the text that is said. `finish_reason` marks the last piece."""

    text: str
    parts: tuple[Part, ...]
    tokens: tuple[TokenText, ...]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(kw_only=True)
class Timing:
    """Seconds on the monotonic clock, for metrics. `arrived_s` is when the request's body was read."""

    arrived_s: float
    first_s: float | None = None
    last_s: float | None = None
    queue_s: float | None = None


class Watcher(Protocol):
    """Told of a sequence's tokens as they come; `gap_s` is the time per token since the output before, if any."""

    def tokens(self, generation: Generation, count: int, gap_s: float | None) -> None: ...


class Generation:
    """A submitted sequence: iterate its pieces, or `aclose` it. Counts are those of the engine so far."""

    def __init__(self, engine: Engine, tokens: TokenBytes, wanted: Wanted, arrived_s: float, watcher: Watcher) -> None:
        """Submits at once; raises what `engine.submit` raises."""
        self.wanted = wanted
        self._watcher = watcher
        self.num_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: str | None = None
        self.timing = Timing(arrived_s=arrived_s)
        params = wanted.params
        self._scores_only = params.max_tokens == 0
        if self._scores_only:  # the engine always samples once; that token is not shown
            params = _with_one_token(params)
        self._reader = reader(
            tokens,
            wanted.prompt_ids,
            wanted.rules,
            harmony=wanted.harmony,
            reasoning=wanted.reasoning,
            shown_ids=wanted.shown_ids,
        )
        self._unreleased: deque[tuple[int, TokenLogprobs | None]] = deque()
        self._stream = engine.submit(
            Submit(
                request_id=uuid.uuid4().hex,
                prompt_ids=list(wanted.prompt_ids),
                params=params,
                salt=wanted.salt,
                grammar=wanted.grammar,
            )
        )

    @property
    def reasoning_tokens(self) -> int:
        return self._reader.num_reasoning

    async def aclose(self) -> None:
        """Leave it: a sequence that still runs frees its blocks before the next step."""
        await self._stream.aclose()
        if self.finish_reason is None:
            self.finish_reason = "abort"

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            async for output in self._stream:
                self._account(output)
                piece = self._piece(output)
                self.finish_reason = piece.finish_reason
                if piece.parts or piece.tokens or piece.finish_reason or piece.prompt_logprobs is not None:
                    yield piece
                if piece.finish_reason is not None:
                    return
            raise EngineError("the engine ended a sequence without a reason")
        finally:
            await self.aclose()

    def _account(self, output: Output) -> None:
        now_s = time.monotonic()
        timing = self.timing
        gap_s = None if timing.last_s is None else (now_s - timing.last_s) / max(1, len(output.token_ids))
        if timing.first_s is None:
            timing.first_s = now_s
            timing.queue_s = output.queue_s
            self.cached_tokens = output.cached_tokens
        timing.last_s = now_s
        self._watcher.tokens(self, len(output.token_ids), gap_s)

    def _piece(self, output: Output) -> Piece:
        if output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed on this request")
        if output.finish_reason == "cancelled":
            raise EngineError("the sequence was cancelled by the engine")
        if self._scores_only:
            return Piece(text="", parts=(), tokens=(), prompt_logprobs=output.prompt_logprobs, finish_reason="length")
        ends_by_id = output.finish_reason == "stop"
        told: list[Told] = []
        for index, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if ends_by_id and index == len(output.token_ids) - 1 and not self.wanted.rules.include_stop:
                break  # the stop id itself is not text
            self._unreleased.append((token_id, output.logprobs[index] if output.logprobs else None))
            told.append(self._reader.push(token_id))
            if told[-1].stop is not None:
                break
        stopped = bool(told) and told[-1].stop is not None
        if output.finish_reason is not None and not stopped:
            told.append(self._reader.finish(cut=not ends_by_id))
            stopped = told[-1].stop is not None
        finish: Literal["stop", "length"] | None = None
        if stopped or ends_by_id:
            finish = "stop"
        elif output.finish_reason is not None:
            finish = "length"
        parts = tuple(part for one in told for part in one.parts)
        starts = [start for one in told for start in one.token_starts]
        return Piece(
            text="".join(part for part in parts if isinstance(part, str)),
            parts=parts,
            tokens=tuple(self._token(start) for start in starts),
            prompt_logprobs=output.prompt_logprobs,
            finish_reason=finish,
        )

    def _token(self, start: int) -> TokenText:
        token_id, logprobs = self._unreleased.popleft()
        return TokenText(token_id=token_id, start=start, logprobs=logprobs)


def _with_one_token(params: SamplingParams) -> SamplingParams:
    return replace(params, max_tokens=1, min_tokens=0)


async def merge(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Piece]]:
    """(index, piece) of several generations as they come. The first failure ends them all; so does leaving early."""
    if len(generations) == 1:
        async for piece in generations[0]:
            yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for piece in generation:
                queue.put_nowait((index, piece))
            queue.put_nowait((index, None))
        except Exception as error:  # handed to the reader, which raises it
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(index, generation)) for index, generation in enumerate(generations)]
    try:
        open_count = len(tasks)
        while open_count:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_count -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for generation in generations:
            await generation.aclose()
