"""A request's fields to `SamplingParams`: defaults, cross-field rules and limits. Past here every value is in range.

Nothing is clamped: what cannot be done is refused with the field's name. Defaults are OpenAI's: 16 new tokens for a
completion, the rest of the context for a chat, temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ridgepoint.engine.protocol import Grammar
from ridgepoint.engine.text import TextRules
from ridgepoint.errors import RequestError
from ridgepoint.sched.params import SamplingParams
from ridgepoint.server.config import Limits
from ridgepoint.server.generate import Wanted
from ridgepoint.server.harmony.reader import Harmony
from ridgepoint.server.reasoning.reader import Reasoning
from ridgepoint.server.schema import ChatRequest, CompletionRequest, GenerationFields

COMPLETION_DEFAULT_MAX_TOKENS = 16
_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the loaded model can hold: `max_tokens` of prompt and output together."""

    vocab_size: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """`params` are those of choice 0; its siblings differ in their seed alone."""

    params: SamplingParams
    rules: TextRules

    def choices(
        self,
        prompt_ids: Sequence[int],
        count: int,
        salt: bytes,
        grammar: Grammar | None = None,
        shown_ids: frozenset[int] = frozenset(),
        harmony: Harmony | None = None,
        reasoning: Reasoning | None = None,
    ) -> list[Wanted]:
        """That many sequences for one prompt, each of the form that `grammar` says."""
        return [
            Wanted(
                prompt_ids=prompt_ids,
                params=self._of_choice(index),
                rules=self.rules,
                salt=salt,
                grammar=grammar,
                shown_ids=shown_ids,
                harmony=harmony,
                reasoning=reasoning,
            )
            for index in range(count)
        ]

    def ending_at(self, token_ids: Sequence[int]) -> Sampling:
        """The same, ended by these tokens too, unless the caller wants to go on past any end."""
        if self.params.ignore_eos:
            return self
        return replace(self, params=replace(self.params, stop_token_ids=(*self.params.stop_token_ids, *token_ids)))

    def _of_choice(self, index: int) -> SamplingParams:
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=(seed + index) & _SEED_MASK)


def completion_sampling(
    request: CompletionRequest, num_prompt: int, capacity: Capacity, limits: Limits, *, rank: bool
) -> Sampling:
    """`rank` asks for log-probabilities that are not shown, to choose the best of several."""
    max_tokens = COMPLETION_DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    _at_most("logprobs", request.logprobs, limits.max_logprobs)
    logprobs = 0 if request.logprobs is None and rank else request.logprobs
    return _sampling(
        request, max_tokens, "max_tokens", num_prompt, capacity, limits,
        logprobs=logprobs, prompt_logprobs=request.logprobs if request.echo else None,
    )  # fmt: skip


def chat_sampling(request: ChatRequest, num_prompt: int, capacity: Capacity, limits: Limits) -> Sampling:
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
        raise RequestError(
            f"max_tokens {request.max_tokens} and max_completion_tokens {request.max_completion_tokens} differ",
            param="max_tokens", hint="give one of them",
        )  # fmt: skip
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
    _at_most("top_logprobs", request.top_logprobs, limits.max_logprobs)
    _check_prompt(num_prompt, "messages", capacity)
    max_tokens = capacity.max_tokens - num_prompt if wanted is None else wanted
    return _sampling(
        request, max_tokens, name, num_prompt, capacity, limits,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None, prompt_logprobs=None,
    )  # fmt: skip


def check_sequences(num_prompts: int, per_prompt: int, limits: Limits) -> None:
    """Before any work is done for them."""
    _at_most("prompt", num_prompts, limits.max_prompts, "prompts in one request")
    _at_most("n", num_prompts * per_prompt, limits.max_sequences, "sequences in one request (prompts x n)")


def check_token_ids(ids: Sequence[int], name: str, vocab_size: int) -> None:
    worst = max(ids, default=0)
    if worst >= vocab_size:
        raise RequestError(f"{name}: token id {worst} is not below the vocabulary's {vocab_size}", param=name)


def _sampling(
    request: GenerationFields,
    max_tokens: int,
    max_tokens_name: str,
    num_prompt: int,
    capacity: Capacity,
    limits: Limits,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> Sampling:
    prompt_name = "prompt" if isinstance(request, CompletionRequest) else "messages"
    _check_prompt(num_prompt, prompt_name, capacity)
    if num_prompt + max_tokens > capacity.max_tokens:
        room = capacity.max_tokens - num_prompt
        raise RequestError(
            f"this model's maximum context length is {capacity.max_tokens} tokens, but {num_prompt + max_tokens} were"
            f" requested: {num_prompt} of the prompt and {max_tokens} as {max_tokens_name}",
            param=max_tokens_name, code="context_length_exceeded", hint=f"ask for at most {room}",
        )  # fmt: skip
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise RequestError(f"min_tokens {min_tokens} is above {max_tokens_name} {max_tokens}", param="min_tokens")
    stop_token_ids = tuple(dict.fromkeys(request.stop_token_ids or ()))
    _at_most("stop_token_ids", len(stop_token_ids), limits.max_stops, "stop token ids")
    check_token_ids(stop_token_ids, "stop_token_ids", capacity.vocab_size)
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_default(request.temperature, 1.0),
        top_k=max(0, request.top_k or 0),  # -1 and 0 both mean "all"
        top_p=_default(request.top_p, 1.0),
        min_p=_default(request.min_p, 0.0),
        repetition_penalty=_default(request.repetition_penalty, 1.0),
        presence_penalty=_default(request.presence_penalty, 0.0),
        frequency_penalty=_default(request.frequency_penalty, 0.0),
        logit_bias=_logit_bias(request.logit_bias, capacity.vocab_size, limits),
        seed=None if request.seed is None else request.seed & _SEED_MASK,
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    rules = TextRules(
        stops=_stops(request.stop, limits),
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=min_tokens,
        skip_special=request.skip_special_tokens is not False,
    )
    return Sampling(params=params, rules=rules)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _at_most(param: str, value: int | None, limit: int, what: str | None = None) -> None:
    if value is not None and value > limit:
        what = f"{value} {what}" if what else f"{param} {value}"
        raise RequestError(f"{what}: at most {limit} allowed", param=param, code="limit_exceeded")


def _check_prompt(num_prompt: int, param: str, capacity: Capacity) -> None:
    if num_prompt >= capacity.max_tokens:
        raise RequestError(
            f"this model's maximum context length is {capacity.max_tokens} tokens, but the prompt has {num_prompt}",
            param=param, code="context_length_exceeded", hint="shorten the prompt",
        )  # fmt: skip


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop or ()))
    _at_most("stop", len(stops), limits.max_stops, "stop strings")
    for string in stops:
        if not string:
            raise RequestError("a stop string must not be empty", param="stop", code="invalid_value")
        _at_most("stop", len(string), limits.max_stop_chars, "characters in a stop string")
    return stops


def _logit_bias(bias: dict[str, float] | None, vocab_size: int, limits: Limits) -> dict[int, float]:
    if not bias:
        return {}
    _at_most("logit_bias", len(bias), limits.max_logit_bias, "entries of logit_bias")
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 18):
            raise RequestError(f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias", code="invalid_value")
        if not -100 <= value <= 100:
            raise RequestError(
                f"logit_bias of token {key}: expected -100 to 100, got {value:g}",
                param="logit_bias",
                code="invalid_value",
            )
        result[int(key)] = value
    check_token_ids(list(result), "logit_bias", vocab_size)
    return result
