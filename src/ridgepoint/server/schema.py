"""The bodies of requests, exactly: every field that is accepted, its type and its range. Nothing is computed here.

An unknown field is an error, because it may have been meant to change the result. The fields under "accepted, no
effect" are the OpenAI client's bookkeeping, which cannot. `None` always means "not given".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_INT = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Positive = Annotated[int, Meta(ge=1, le=MAX_INT)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Count


class _Body(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class StreamOptions(_Body, frozen=True, kw_only=True):
    include_usage: bool | None = None


class JsonSchema(_Body, frozen=True, kw_only=True):
    """The schema is enforced whether `strict` is asked for or not."""

    name: Annotated[str, Meta(max_length=64, pattern="^[a-zA-Z0-9_-]+$", description="letters, digits, _ and -")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Body, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Body, frozen=True, kw_only=True):
    """One of these. `json` is a schema, as an object or as text; `grammar` is Lark or GBNF."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: str | None = None


class GenerationFields(_Body, frozen=True, kw_only=True):
    """What completions and chat completions share."""

    model: str | None = None
    n: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=MAX_INT)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None  # from -100 to 100, checked where the token can be named
    # beyond OpenAI, with vLLM's names and meaning
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # accepted, no effect on the result
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(GenerationFields, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt`: text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Positive | None = None
    suffix: Annotated[Literal[""] | None, Meta(description="text is only continued, not inserted: ''")] = None


class TextPart(_Body, frozen=True, kw_only=True):
    type: Literal["text"]
    text: str


class CalledFunction(_Body, frozen=True, kw_only=True):
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(_Body, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # of a stream, which some clients send back


class Message(_Body, frozen=True, kw_only=True):
    """One turn. Several text parts are joined as they stand. Only an assistant that called tools may say nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    reasoning_content: str | None = None


class Function(_Body, frozen=True, kw_only=True):
    """`parameters` is the schema of an object; it is enforced where a call must be made, `strict` or not."""

    name: Annotated[
        str, Meta(max_length=64, pattern="^[a-zA-Z0-9_.-]+$", description="up to 64 letters, digits, _, . and -")
    ]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: Function


class FunctionName(_Body, frozen=True, kw_only=True):
    name: str


class NamedTool(_Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: FunctionName


class ChatRequest(GenerationFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions. Without `max_tokens` the answer may fill the context."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    reasoning_effort: str | None = None
    # beyond OpenAI
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # accepted where they ask for nothing
    modalities: list[Literal["text"]] | None = None


class TokenizeRequest(_Body, frozen=True, kw_only=True):
    """POST /tokenize. Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(_Body, frozen=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None
