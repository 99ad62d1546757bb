"""The bodies of responses, in OpenAI's shapes and field order. Nothing is computed here."""

from __future__ import annotations

from typing import Literal

import msgspec

Finish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls"]


class _Reply(msgspec.Struct, kw_only=True, frozen=True):
    pass


class PromptTokensDetails(_Reply, frozen=True, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(_Reply, frozen=True, kw_only=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(_Reply, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


# ---------------------------------------------------------------- /v1/completions


class CompletionLogprobs(_Reply, frozen=True, kw_only=True):
    """Parallel lists, one entry per token. A first prompt token (with `echo`) has no probability: null."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionChoice(_Reply, frozen=True, kw_only=True):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(_Reply, frozen=True, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str


# ---------------------------------------------------------------- /v1/chat/completions


class TopLogprob(_Reply, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(_Reply, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Reply, frozen=True, kw_only=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CalledFunction(_Reply, frozen=True, kw_only=True):
    name: str
    arguments: str


class AnswerToolCall(_Reply, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(_Reply, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    refusal: None = None
    tool_calls: list[AnswerToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Reply, frozen=True, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatCompletion(_Reply, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default"] = "default"


class DeltaFunction(_Reply, frozen=True, kw_only=True):
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str


class DeltaToolCall(_Reply, frozen=True, kw_only=True):
    """The first of a call has its id, type and name; the others have more of its arguments."""

    index: int
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET
    function: DeltaFunction


class Delta(_Reply, frozen=True, kw_only=True, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChatChunkChoice(_Reply, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish | None


class ChatChunk(_Reply, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str
    service_tier: Literal["default"] = "default"


# ---------------------------------------------------------------- the rest


class ModelCard(_Reply, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ridgepoint"] = "ridgepoint"
    root: str
    max_model_len: int


class ModelList(_Reply, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(_Reply, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(_Reply, frozen=True, kw_only=True):
    prompt: str


class HealthReply(_Reply, frozen=True, kw_only=True):
    status: Literal["ok", "loading", "draining", "failed"]
    detail: str | None = None


class VersionReply(_Reply, frozen=True, kw_only=True):
    version: str


class ErrorDetail(_Reply, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(_Reply, frozen=True, kw_only=True):
    error: ErrorDetail
