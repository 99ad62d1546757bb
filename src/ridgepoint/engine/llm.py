"""The engine in this process, without asyncio: for scripts, benchmarks and tests.

    llm = LLM(EngineOptions(model="path/to/checkpoint"))
    for done in llm.generate([[1, 2, 3], [4, 5]], SamplingParams(max_tokens=16)):
        print(done.token_ids)

Token ids in, token ids out; text is the tokenizer's business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ridgepoint.engine.build import build_engine
from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.protocol import Grammar, Output, Refused, Submit, TokenLogprobs
from ridgepoint.errors import EngineError, RequestError
from ridgepoint.sched.params import SamplingParams


@dataclass(kw_only=True)
class Completion:
    """One finished sequence."""

    request_id: str
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    seed: int | None = None
    finish_reason: str | None = None


class LLM:
    """`source` is options, or a core that is already built."""

    def __init__(
        self,
        source: EngineOptions | EngineCore,
        *,
        announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        self.core = source if isinstance(source, EngineCore) else build_engine(source, announce=announce)
        self._submitted = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        salt: bytes = b"",
        grammar: Grammar | None = None,
    ) -> list[Completion]:
        """All completions, in the order of the prompts. Raises `RequestError` for the first prompt that is refused."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts with {len(each)} params")
        done: dict[str, Completion] = {}
        queue = []
        for prompt, own in zip(prompts, each, strict=True):
            completion = Completion(request_id=f"llm-{self._submitted}", prompt_ids=list(prompt))
            self._submitted += 1
            done[completion.request_id] = completion
            queue.append(
                Submit(
                    request_id=completion.request_id,
                    prompt_ids=completion.prompt_ids,
                    params=own,
                    salt=salt,
                    grammar=grammar,
                )
            )
        queue.reverse()
        try:
            while queue or not self.core.idle:
                while queue and self.core.scheduler.room > 0:
                    self.core.handle(queue.pop())
                self.core.step()
                for message in self.core.take_outbox():
                    self._record(message, done)
        except BaseException:
            for request_id in done:
                self.core.scheduler.cancel(request_id)
            raise
        return list(done.values())

    def _record(self, message: object, done: dict[str, Completion]) -> None:
        if isinstance(message, Refused):
            raise RequestError(
                message.message, status=message.status, param=message.param, code=message.code, hint=message.hint
            )
        if not isinstance(message, Output):
            return
        completion = done[message.request_id]
        if message.seed is not None:
            completion.seed, completion.cached_tokens = message.seed, message.cached_tokens
            completion.prompt_logprobs = message.prompt_logprobs
        completion.token_ids += message.token_ids
        completion.logprobs += message.logprobs or []
        completion.finish_reason = message.finish_reason
        if message.finish_reason == "error":
            raise EngineError(message.error or "the request failed")
