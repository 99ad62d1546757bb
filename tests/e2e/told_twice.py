"""An answer asked for whole and as a stream, which have to tell the same."""

from __future__ import annotations

from typing import Any

import openai

HI: Any = [{"role": "user", "content": "hi"}]


def reasoning_of(message: Any) -> str:
    return (message.model_extra or {}).get("reasoning_content") or ""


def answer_of(client: openai.OpenAI, *, model: str, **asked: Any) -> tuple[Any, tuple[str, str, list[tuple[str, str]]]]:
    """The choice of a whole answer, and what it tells; a stream of the same has been seen to tell the same."""
    choice = client.chat.completions.create(model=model, messages=HI, **asked).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    told = (choice.message.content or "", reasoning_of(choice.message), calls)
    content = reasoning = ""
    streamed: list[list[str]] = []
    finish = None
    for chunk in client.chat.completions.create(model=model, messages=HI, stream=True, **asked):
        (one,) = chunk.choices
        content, reasoning = content + (one.delta.content or ""), reasoning + reasoning_of(one.delta)
        finish = one.finish_reason or finish
        for call in one.delta.tool_calls or []:
            if call.id is not None:
                assert call.index == len(streamed) and call.type == "function" and call.function.arguments == ""
                streamed.append([call.function.name, ""])
            streamed[call.index][1] += call.function.arguments
    assert (content, reasoning, [tuple(call) for call in streamed]) == told
    assert finish == choice.finish_reason
    return choice, told
