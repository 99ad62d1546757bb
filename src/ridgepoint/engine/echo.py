"""An executor without a model: each sequence repeats its own prompt. Everything around it is real.

For tests of what surrounds a model and for timing it. Token i of the output is token `i % len(prompt)` of the prompt;
its log-probability is 0 and each alternative's is one less than the one before.
"""

from __future__ import annotations

import time

from ridgepoint.engine.core import ModelFacts
from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.engine.options import EchoOptions
from ridgepoint.sched.prefix import root_key
from ridgepoint.sched.step import Batch, StepResult


class EchoExecutor:
    def __init__(self, options: EchoOptions) -> None:
        self.options = options

    def run(self, batch: Batch) -> StepResult:
        started_s = time.monotonic()
        if self.options.step_s:
            time.sleep(self.options.step_s)
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for place, segment in enumerate(batch.segments):
            request = segment.request
            if request.num_scored < request.num_prompt:
                stop = min(segment.start + segment.num_tokens + 1, request.num_prompt)
                scored = request.tokens[request.num_scored : stop]
                prompt_logprobs[place] = [self._logprobs(token, request.params.prompt_logprobs) for token in scored]
            if segment.wants_sample:
                token = request.tokens[request.num_output % request.num_prompt]
                if token in request.stop_ids and request.num_output < request.params.min_tokens:
                    token = (token + 1) % self.options.vocab_size
                token_ids.append(token)
                logprobs.append(
                    self._logprobs(token, request.params.logprobs) if request.params.logprobs is not None else None
                )
        return StepResult(token_ids, time.monotonic() - started_s, logprobs, prompt_logprobs)

    def _logprobs(self, token: int, count: int | None) -> TokenLogprobs:
        top = [((token + i) % self.options.vocab_size, -float(i)) for i in range(count or 0)]
        return TokenLogprobs(token_id=token, logprob=0.0, top=top)


def echo_facts(options: EchoOptions, name: str) -> ModelFacts:
    return ModelFacts(
        name=name,
        vocab_size=options.vocab_size,
        max_context=options.max_context,
        eos_ids=(options.eos_id,),
        root_of=lambda salt: root_key(model="echo", layout="", dtype="", tenant=salt),
    )
