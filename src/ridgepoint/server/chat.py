"""POST /v1/chat/completions: messages to an answer, in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ridgepoint.engine.protocol import Grammar
from ridgepoint.engine.text import TokenBytes
from ridgepoint.errors import RequestError
from ridgepoint.server.generate import Piece, TokenText, Wanted
from ridgepoint.server.harmony.grammar import form_within
from ridgepoint.server.harmony.marks import Marks
from ridgepoint.server.harmony.reader import Harmony, HarmonyReader
from ridgepoint.server.job import Job, token_name, top_pairs
from ridgepoint.server.params import chat_sampling, check_sequences
from ridgepoint.server.parts import Arguments, CallBegun, Joined, Part, Thought, join
from ridgepoint.server.prompts import Prompt, encode_chat, text_of
from ridgepoint.server.reasoning.grammar import form_behind
from ridgepoint.server.reasoning.reader import Reasoning
from ridgepoint.server.reasoning.tags import place_behind, place_within
from ridgepoint.server.replies import (
    AnswerMessage,
    AnswerToolCall,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatFinish,
    ChatLogprobs,
    ChatTokenLogprob,
    Delta,
    DeltaFunction,
    DeltaToolCall,
    Finish,
    TopLogprob,
)
from ridgepoint.server.schema import ChatRequest
from ridgepoint.server.service import Service, tenant_salt
from ridgepoint.server.structure import grammar_of
from ridgepoint.server.tools import Calling, calling_of


async def start_chat(service: Service, request: ChatRequest, key: str | None) -> ChatJob:
    """Check everything, then submit. `key` is the caller's API key, which separates prefix caches."""
    arrived_s = time.monotonic()
    service.check(request)
    limits, capacity = service.config.limits, service.capacity
    if len(request.messages) > limits.max_messages:
        raise RequestError(
            f"{len(request.messages)} messages: at most {limits.max_messages} allowed",
            param="messages", code="limit_exceeded",
        )  # fmt: skip
    num_choices = request.n or 1
    check_sequences(1, num_choices, limits)
    grammar = await grammar_of(request)
    marks = service.harmony
    calling = calling_of(request, service.tokenizer, marks)
    if calling is not None and grammar is not None:
        raise RequestError(
            "an answer cannot both have a form and call tools", param="response_format", code="invalid_value",
            hint="leave one out, or set tool_choice to 'none'",
        )  # fmt: skip
    variables = template_variables(request)
    if calling is not None:
        variables["tools"] = calling.shown
    prompt = await encode_chat(
        request.messages,
        service.tokenizer,
        capacity,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final=bool(request.continue_final_message),
        variables=variables,
        add_special_tokens=bool(request.add_special_tokens),
        harmony=marks,
    )
    harmony = None if marks is None else _harmony(marks, calling)
    reasoning = _reasoning(service, request, prompt, has_form=grammar is not None)
    grammar = _grammar_behind(prompt.ids, service, harmony, reasoning, calling, grammar)
    sampling = chat_sampling(request, len(prompt.ids), capacity, limits)
    if marks is not None:
        sampling = sampling.ending_at(marks.stop_ids)
    wanted = sampling.choices(
        prompt.ids,
        num_choices,
        tenant_salt(key, request.cache_salt),
        grammar,
        shown_ids=frozenset() if calling is None else calling.shown_ids,
        harmony=harmony,
        reasoning=reasoning,
    )
    return ChatJob(service, request, wanted, arrived_s, calling)


def _harmony(marks: Marks, calling: Calling | None) -> Harmony:
    return Harmony(marks) if calling is None else Harmony(marks, frozenset(calling.schemas), calling.single)


def _reasoning(service: Service, request: ChatRequest, prompt: Prompt, *, has_form: bool) -> Reasoning | None:
    tags = service.tags
    if tags is None:
        return None
    if request.continue_final_message:
        place = place_within(tags, text_of(request.messages[-1]))
    else:
        assert prompt.text is not None, "it was rendered"
        place = place_behind(tags, prompt.text)
    if has_form and place == "closed":
        place = "words"  # line breaks at the beginning are the form's
    return Reasoning(tags, place)


def _grammar_behind(
    prompt_ids: Sequence[int],
    service: Service,
    harmony: Harmony | None,
    reasoning: Reasoning | None,
    calling: Calling | None,
    form: Grammar | None,
) -> Grammar | None:
    """Of the whole answer: of one that may reason, a form is a part of it, and a call too."""
    if harmony is None:
        found = form if calling is None else calling.grammar()
        if found is None or reasoning is None:
            return found
        return msgspec.structs.replace(found, within=form_behind(reasoning))
    place = HarmonyReader(harmony, service.tokenizer.tokens, prompt_ids).place
    if calling is not None:
        return calling.grammar(harmony.marks, place)
    if form is None:
        return None
    return msgspec.structs.replace(form, within=form_within(harmony.marks, place, form.param))


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """What the caller hands to the template. The names of the messages themselves are not his to replace."""
    variables = dict(request.chat_template_kwargs or {})
    for name in ("messages", "add_generation_prompt", "tools", "documents"):
        if name in variables:
            raise RequestError(f"{name!r} cannot be set here", param="chat_template_kwargs", code="invalid_value")
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    return variables


class ChatJob(Job):
    """A running chat completion; read it once, by `collect` or by `events`."""

    def __init__(
        self, service: Service, request: ChatRequest, wanted: list[Wanted], arrived_s: float, calling: Calling | None
    ) -> None:
        self._request = request
        self._begun: set[int] = set()  # sequences whose role a stream has told
        self._calling = calling
        self._streams = [None if calling is None else calling.stream() for _ in wanted]
        self._num_calls = [0] * len(wanted)  # that were told of each sequence
        super().__init__(service, request, wanted, [0] * len(wanted), prefix="chatcmpl", arrived_s=arrived_s)

    async def collect(self) -> ChatCompletion:
        parts: list[list[Part]] = [[] for _ in self.generations]
        tokens: list[list[TokenText]] = [[] for _ in self.generations]
        async for index, piece in self.pieces():
            parts[index] += self._parts(index, piece)
            tokens[index] += piece.tokens
        choices: list[ChatChoice] = []
        for index, answer in enumerate(map(join, parts)):
            self._num_calls[index] = len(answer.calls)
            choices.append(
                ChatChoice(
                    index=index,
                    message=self._message(answer),
                    logprobs=self._logprobs(tokens[index]),
                    finish_reason=self._finish(index, self.finish_of(index)),
                )
            )
        return ChatCompletion(**self.envelope, choices=choices, usage=self.usage())

    def chunks(self, index: int, piece: Piece) -> Iterator[ChatChunk]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(index, Delta(role="assistant", content=""))
        deltas = [self._delta(index, part) for part in self._parts(index, piece)]
        if not deltas and piece.tokens and self._request.logprobs:
            deltas = [Delta(content="")]  # of text that is held back
        for place, delta in enumerate(deltas):
            yield self._chunk(index, delta, logprobs=self._logprobs(() if place else piece.tokens))
        if piece.finish_reason is not None:
            yield self._chunk(index, Delta(), finish_reason=self._finish(index, piece.finish_reason))

    def _parts(self, index: int, piece: Piece) -> Sequence[Part]:
        """What a piece lets be told."""
        stream = self._streams[index]
        if stream is None:
            return piece.parts
        thoughts = [part for part in piece.parts if isinstance(part, Thought)]  # which come before all that is said
        return [*thoughts, *stream.push(piece.text, final=piece.finish_reason is not None)]

    def _message(self, answer: Joined) -> AnswerMessage:
        calls = [
            AnswerToolCall(id=self._new_id(), function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in answer.calls
        ]
        return AnswerMessage(
            content=answer.content or (None if calls or answer.reasoning else ""),
            reasoning_content=answer.reasoning or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )

    def _delta(self, index: int, part: Part) -> Delta:
        match part:
            case Thought(text):
                return Delta(reasoning_content=text)
            case CallBegun(name):
                place = self._num_calls[index]
                self._num_calls[index] += 1
                function = DeltaFunction(name=name, arguments="")
                return Delta(
                    tool_calls=[DeltaToolCall(index=place, id=self._new_id(), type="function", function=function)]
                )
            case Arguments(text):
                place = self._num_calls[index] - 1
                return Delta(tool_calls=[DeltaToolCall(index=place, function=DeltaFunction(arguments=text))])
            case str():
                return Delta(content=part)

    def _new_id(self) -> str:
        assert self._calling is not None, "a call was told"
        return self._calling.new_id()

    def _finish(self, index: int, reason: Finish) -> ChatFinish:
        return "tool_calls" if self._num_calls[index] and reason == "stop" else reason

    def last_chunk(self) -> ChatChunk:
        return ChatChunk(**self.envelope, choices=[], usage=self.usage())

    def _chunk(
        self, index: int, delta: Delta, *, logprobs: ChatLogprobs | None = None, finish_reason: ChatFinish | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatChunk(**self.envelope, choices=[choice], usage=self.chunk_usage)

    def _logprobs(self, tokens: Iterable[TokenText]) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        table = self.service.tokenizer.tokens
        return ChatLogprobs(content=[_token_logprob(table, token) for token in tokens])


def _token_logprob(table: TokenBytes, token: TokenText) -> ChatTokenLogprob:
    assert token.logprobs is not None, "the engine was asked for log-probabilities"
    return ChatTokenLogprob(
        token=token_name(table, token.token_id),
        logprob=token.logprobs.logprob,
        bytes=list(table.of(token.token_id)),
        top_logprobs=[
            TopLogprob(token=token_name(table, token_id), logprob=value, bytes=list(table.of(token_id)))
            for token_id, value in top_pairs(token.logprobs)
        ],
    )
