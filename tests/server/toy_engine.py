"""An engine without a model: every sequence repeats its own prompt, or says `answer`, one token per output, when the test lets it.

Has the face of `engine.client.EngineClient`. Deterministic; `gate` holds all sequences, `cancelled` lists who was cut.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ridgepoint.engine.protocol import Output, Ready, StepReport, Submit, TokenLogprobs
from ridgepoint.errors import EngineError

READY = Ready(model="toy", vocab_size=512, max_context=256, num_blocks=64, block_tokens=16, load_s=0.0)


def logprob_of(token_id: int) -> float:
    return -(token_id % 7) / 8 - 0.125


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    others = [((token_id + offset) % 400, logprob_of(token_id) - offset) for offset in range(num_top)]
    return TokenLogprobs(token_id=token_id, logprob=logprob_of(token_id), top=others)


@dataclass
class ToyEngine:
    capacity: int = 8
    ready: Ready = READY
    alive: bool = True
    failure: str | None = None
    eos_id: int = 0
    answer: list[int] | None = None
    fail_after: int | None = None  # outputs of a sequence before the engine dies under it
    stats: StepReport | None = None
    submitted: list[Submit] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    streams: dict[str, ToyStream] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def in_flight(self) -> int:
        return len(self.streams)

    @property
    def room(self) -> int:
        return self.capacity - len(self.streams)

    async def start(self) -> Ready:
        return self.ready

    async def close(self) -> None:
        self.alive = False
        self.ended.set()

    async def wait_ended(self) -> EngineError | None:
        await self.ended.wait()
        return None

    def submit(self, submit: Submit) -> ToyStream:
        self.submitted.append(submit)
        stream = self.streams[submit.request_id] = ToyStream(self, submit)
        return stream


class ToyStream:
    def __init__(self, engine: ToyEngine, submit: Submit) -> None:
        self._engine = engine
        self._submit = submit
        self._num_out = 0
        self._done = False

    def __aiter__(self) -> ToyStream:
        return self

    async def __anext__(self) -> Output:
        if self._done:
            raise StopAsyncIteration
        await self._engine.gate.wait()
        await asyncio.sleep(0)
        if self._engine.fail_after is not None and self._num_out >= self._engine.fail_after:
            self._leave()
            raise EngineError("the engine process was killed by SIGKILL")
        prompt, params = self._submit.prompt_ids, self._submit.params
        said = prompt if self._engine.answer is None else self._engine.answer
        token_id = said[self._num_out % len(said)]
        first = self._num_out == 0
        self._num_out += 1
        finish = None
        if self._num_out > params.min_tokens and (
            token_id in params.stop_token_ids or (token_id == self._engine.eos_id and not params.ignore_eos)
        ):
            finish = "stop"
        elif self._num_out >= params.max_tokens:
            finish = "length"
        if finish:
            self._leave()
        prompt_logprobs = None
        if first and params.prompt_logprobs is not None:
            prompt_logprobs = [None, *(logprobs_of(one, params.prompt_logprobs) for one in prompt[1:])]
        return Output(
            request_id=self._submit.request_id,
            token_ids=[token_id],
            logprobs=None if params.logprobs is None else [logprobs_of(token_id, params.logprobs)],
            prompt_logprobs=prompt_logprobs,
            cached_tokens=len(prompt) // 2 if first else 0,
            queue_s=0.001 if first else None,
            finish_reason=finish,
        )

    async def aclose(self) -> None:
        if not self._done:
            self._engine.cancelled.append(self._submit.request_id)
            self._leave()

    def _leave(self) -> None:
        self._done = True
        self._engine.streams.pop(self._submit.request_id, None)
