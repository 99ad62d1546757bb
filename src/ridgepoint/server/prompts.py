"""What a request sends as prompt, to token ids: text, token lists, or chat messages through the template.

Long texts are tokenised in a thread, so that one caller's book does not stall another's stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ridgepoint.engine.tokenizer import Tokenizer
from ridgepoint.errors import RequestError
from ridgepoint.server.harmony.history import for_template
from ridgepoint.server.harmony.marks import Marks
from ridgepoint.server.params import Capacity, check_token_ids
from ridgepoint.server.schema import Message, ToolCall
from ridgepoint.server.spelled import sign_for, with_signs

THREAD_FROM_CHARS = 8192


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and the text as it was sent (None when it was sent as ids)."""

    ids: list[int]
    text: str | None


def split_prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """One entry per prompt: a text, several texts, one list of ids, or several lists."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is an empty list", param="prompt", code="invalid_value")
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [prompt]
    if len(kinds) > 1:
        raise RequestError(
            "prompt mixes texts, token ids and lists", param="prompt", code="invalid_type",
            hint="send a text, texts, a list of token ids, or lists of token ids",
        )  # fmt: skip
    return list(prompt)


async def encode_prompt(
    prompt: str | list[int], tokenizer: Tokenizer, capacity: Capacity, *, add_special_tokens: bool
) -> Prompt:
    """An empty text stands for the start of a document, as OpenAI has it: BOS where there is one, else EOS."""
    if not isinstance(prompt, str):
        if not prompt:
            raise RequestError("prompt has no tokens", param="prompt", code="empty_prompt")
        check_token_ids(prompt, "prompt", capacity.vocab_size)
        return Prompt(ids=prompt, text=None)
    ids = await _encode([prompt], tokenizer, capacity, add_special_tokens=add_special_tokens, param="prompt")
    if not ids:
        start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if start is None:
            raise RequestError("the prompt is empty", param="prompt", code="empty_prompt")
        ids = [start]
    return Prompt(ids=ids, text=prompt)


async def encode_chat(
    messages: list[Message],
    tokenizer: Tokenizer,
    capacity: Capacity,
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
    variables: Mapping[str, Any] | None = None,
    add_special_tokens: bool = False,
    harmony: Marks | None = None,
) -> Prompt:
    """Render and tokenise. The template writes BOS itself, so by default nothing is added around it."""
    texts = await asyncio.to_thread(
        _render, messages, tokenizer, add_generation_prompt=add_generation_prompt,
        continue_final=continue_final, variables=variables or {}, harmony=harmony,
    )  # fmt: skip
    ids = await _encode(texts, tokenizer, capacity, add_special_tokens=add_special_tokens, param="messages")
    if not ids:
        raise RequestError("the chat template made an empty prompt", param="messages", code="empty_prompt")
    return Prompt(ids=ids, text="".join(texts))


async def _encode(
    texts: Sequence[str], tokenizer: Tokenizer, capacity: Capacity, *, add_special_tokens: bool, param: str
) -> list[int]:
    """Ids of texts one behind the other; what is added stands before the first."""
    num_chars = sum(map(len, texts))
    # No token covers more bytes than the longest one, or parts of two texts: hopeless texts are refused before they cost anything.
    at_least = max(num_chars // max(1, tokenizer.longest_token_bytes), len(texts) - 1)
    if at_least > capacity.max_tokens:
        raise RequestError(
            f"this model's maximum context length is {capacity.max_tokens} tokens, but the prompt has at least"
            f" {at_least}",
            param=param, code="context_length_exceeded", hint="shorten the prompt",
        )  # fmt: skip

    def ids() -> list[int]:
        found = tokenizer.encode(texts[0], add_special_tokens=add_special_tokens)
        for text in texts[1:]:
            found += tokenizer.encode(text, add_special_tokens=False)
        return found

    return ids() if num_chars < THREAD_FROM_CHARS else await asyncio.to_thread(ids)


# ---------------------------------------------------------------- chat


def _render(
    messages: list[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool,
    continue_final: bool,
    variables: Mapping[str, Any],
    harmony: Marks | None,
) -> list[str]:
    """The prompt, parted where text must not be read as a special token."""
    template = tokenizer.chat_template
    if template is None:
        raise RequestError(
            "this model has no chat template", param="messages", code="no_chat_template",
            hint="use /v1/completions, or serve with --chat-template FILE",
        )  # fmt: skip
    for name in variables:
        if name not in template.variables:
            raise RequestError(
                f"the chat template does not read {name!r}", param=name, code="invalid_value",
                hint="it reads " + ", ".join(sorted(template.variables)),
            )  # fmt: skip
    check_messages(messages)

    if continue_final and messages[-1].role != "assistant":
        raise RequestError("continue_final_message needs a last message by the assistant", param="messages")

    def rendered(*, arguments_as_text: bool = False) -> list[str]:
        plain = [_plain(message, template.source, arguments_as_text=arguments_as_text) for message in messages]
        generation = add_generation_prompt and not continue_final
        if harmony is None:
            text = template.render(plain, add_generation_prompt=generation, variables=variables)
            return [_cut_behind(plain[-1]["content"], text) if continue_final else text]
        plain = for_template(plain)
        try:
            sign = sign_for([plain, dict(variables)])
            plain, named = (with_signs(value, harmony.spelled, sign) for value in (plain, dict(variables)))
        except RecursionError as error:
            raise RequestError("arguments or tools are nested too deeply", param="messages") from error
        text = template.render(plain, add_generation_prompt=generation, variables=named)
        return (_cut_behind(plain[-1]["content"], text) if continue_final else text).split(sign)

    try:
        return rendered()
    except RequestError:
        if harmony is not None or not any(message.tool_calls for message in messages):
            raise
        return rendered(arguments_as_text=True)  # which some templates want, most want values


def _cut_behind(last: str, text: str) -> str:
    """A rendered conversation up to the end of its last message."""
    end = text.rfind(last.strip())
    if not last.strip() or end < 0:
        raise RequestError("the chat template does not show the last message as it is", param="messages")
    return text[: end + len(last.strip())] + last[len(last.rstrip()) :]


def check_messages(messages: Sequence[Message]) -> None:
    """What a message's role asks of its other fields."""
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise RequestError(
                f"missing required parameter {name + '.content'!r}", param=f"{name}.content",
                code="missing_required_parameter",
            )  # fmt: skip
        if message.tool_calls is not None and message.role != "assistant":
            raise RequestError(f"{name}: only the assistant calls tools", param=f"{name}.tool_calls")
        if (message.tool_call_id is None) == (message.role == "tool"):
            raise RequestError(
                f"{name}: a message of role 'tool', and no other, has a tool_call_id", param=f"{name}.tool_call_id"
            )


def _called(call: ToolCall, as_text: bool) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestError(f"the arguments of call {call.id[:64]!r} are no JSON object", param="messages")
    given = call.function.arguments if as_text else arguments
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": given}}


def text_of(message: Message) -> str:
    """All of its content, however it was sent."""
    content = "" if message.content is None else message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _plain(message: Message, template_source: str, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """A message as templates expect it. A template that has never heard of `developer` knows it as `system`."""
    role: str = message.role
    if role == "developer" and "developer" not in template_source:
        role = "system"
    plain: dict[str, Any] = {"role": role, "content": text_of(message)}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        plain["tool_calls"] = [_called(call, arguments_as_text) for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain
