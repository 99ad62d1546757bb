"""A conversation as gpt-oss's template takes it.

It knows reasoning as `thinking`, one call a message with its result right behind it, and instructions in the first message
alone; of what else it is sent it leaves parts out without a word. Invariant: all of a conversation reaches the template, or it
is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ridgepoint.errors import RequestError

_INSTRUCTIONS = ("system", "developer")


def for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation, in messages that the template shows whole."""
    head = next((place for place, one in enumerate(messages) if one["role"] not in _INSTRUCTIONS), len(messages))
    instructions = "\n\n".join(one["content"] for one in messages[:head])
    found: list[dict[str, Any]] = [{**messages[0], "content": instructions}] if head else []
    place = head
    while place < len(messages):
        message = messages[place]
        place += 1
        if message["role"] in _INSTRUCTIONS:
            raise RequestError(
                f"messages[{place - 1}]: this model takes instructions at the beginning alone", param="messages",
                code="invalid_value", hint="move them to the first message",
            )  # fmt: skip
        if not message.get("tool_calls"):
            if message["role"] == "tool":
                raise _unasked(place - 1, message)
            found.append(_with_thinking(message))
            continue
        results = place
        while place < len(messages) and messages[place]["role"] == "tool":
            place += 1
        found += _calls(message, messages[results:place], results)
    return found


def _with_thinking(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = message.get("reasoning_content")
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**rest, "thinking": reasoning} if reasoning else rest


def _calls(message: dict[str, Any], results: Sequence[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """A message for each call, each with the results that name it. What was said before the calls is shown as reasoning, the
    only words that the template shows there."""
    said = "\n".join(filter(None, (message.get("reasoning_content"), message["content"])))
    ids = [call["id"] for call in message["tool_calls"]]
    for place, result in enumerate(results, first):
        if result["tool_call_id"] not in ids:
            raise _unasked(place, result)
    found: list[dict[str, Any]] = []
    for call in message["tool_calls"]:
        found.append({"role": "assistant", "content": "", "tool_calls": [call]})
        found += [result for result in results if result["tool_call_id"] == call["id"]]
    if said:
        found[0]["thinking"] = said
    return found


def _unasked(place: int, message: dict[str, Any]) -> RequestError:
    return RequestError(
        f"messages[{place}]: the calls before it have no id {message['tool_call_id'][:64]!r}",
        param=f"messages[{place}].tool_call_id", code="invalid_value",
    )  # fmt: skip
