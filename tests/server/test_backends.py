"""What a backend at a URL makes of a stream. The engine's own is tested by the commands that use it."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from ridgepoint.server.backends import RemoteBackend
from ridgepoint.server.parts import Thought
from ridgepoint.server.schema import ChatRequest, Message

DELTAS = ({"role": "assistant"}, {"F": "Two"}, {"F": "?", "content": ""}, {"content": "It"}, {"content": " is."})


def answer(field: str) -> httpx.MockTransport:
    """A server that names reasoning so."""
    deltas = [{field if name == "F" else name: text for name, text in delta.items()} for delta in DELTAS]
    events: list[object] = [{"choices": [{"delta": delta}]} for delta in deltas]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return httpx.MockTransport(lambda request: httpx.Response(200, text=text))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_told_apart_by_either_name(field: str) -> None:
    async def told() -> list[str | Thought]:
        backend = RemoteBackend("http://nowhere.invalid", model="m", api_key=None)
        await backend._http.aclose()
        backend._http = httpx.AsyncClient(transport=answer(field))
        async with backend:
            parts = [part async for part in backend.stream(ChatRequest(messages=[Message(role="user", content="hi")]))]
        assert backend.ending is not None and backend.ending.finish_reason == "stop"
        return parts

    assert asyncio.run(told()) == [Thought("Two"), Thought("?"), "It", " is."]
