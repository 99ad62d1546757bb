"""POST /v1/chat/completions in OpenAI's shapes, over an engine that repeats the prompt."""

from __future__ import annotations

import asyncio
import json

import pytest


def prompt_of(served, index: int = -1) -> str:
    ids = served.engine.submitted[index].prompt_ids
    return served.service.tokenizer.decode(ids, skip_special=False)


def test_a_chat_has_openais_shape(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.chat(max_tokens=5)
            body = response.json()
            assert response.status_code == 200
            assert (body["object"], body["id"][:9]) == ("chat.completion", "chatcmpl-")
            message = {"role": "assistant", "content": "user\n", "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
            assert body["choices"] == [choice]
            assert prompt_of(served) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    asyncio.run(run())


def test_without_a_limit_the_answer_may_fill_the_context(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            usage = (await served.chat()).json()["usage"]
            assert usage["total_tokens"] == served.engine.ready.max_context

    asyncio.run(run())


def test_a_stream_has_roles_pieces_and_an_end_for_every_choice(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.chat(stream=True, n=2, max_tokens=9, stream_options={"include_usage": True})
            lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
            assert lines[-1] == "[DONE]"
            chunks = [json.loads(line) for line in lines[:-1]]
            assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 18
            for index in range(2):
                mine = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == index]
                assert mine[0]["delta"] == {"role": "assistant", "content": ""}
                assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == "length"
                assert "".join(c["delta"].get("content", "") for c in mine) == "user\nhi\n"
            assert len({chunk["id"] for chunk in chunks}) == 1

    asyncio.run(run())


def test_logprobs(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            logprobs = (await served.chat("🦊", logprobs=True, top_logprobs=2, max_tokens=9)).json()["choices"][0][
                "logprobs"
            ]
            assert logprobs["refusal"] is None
            tokens = logprobs["content"]
            assert all(list(token) == ["token", "logprob", "bytes", "top_logprobs"] for token in tokens)
            assert all(len(token["top_logprobs"]) == 2 for token in tokens)
            assert (
                b"".join(bytes(token["bytes"]) for token in tokens)
                .decode()
                .startswith("<|im_start|>user\n🦊<|im_end|>")
            )
            assert (await served.chat(logprobs=True, max_tokens=1)).json()["choices"][0]["logprobs"]["content"][0][
                "top_logprobs"
            ] == []
            assert (await served.chat(top_logprobs=2)).json()["error"]["param"] == "top_logprobs"

    asyncio.run(run())


def test_content_parts_are_joined_and_developer_is_system(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
            messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
            await served.chat(messages=messages, max_tokens=1)
            assert prompt_of(served).startswith(
                "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>"
            )

    asyncio.run(run())


def test_continuing_the_last_message(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer is "}]
            response = await served.chat(messages=messages, continue_final_message=True, max_tokens=1)
            assert response.status_code == 200
            assert prompt_of(served).endswith("<|im_start|>assistant\nThe answer is ")
            assert (await served.chat(continue_final_message=True)).status_code == 400

    asyncio.run(run())


def test_template_variables_are_passed_and_unknown_ones_refused(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            await served.chat(chat_template_kwargs={"thinking": True}, max_tokens=1)
            assert prompt_of(served).endswith("assistant\nHm. ")
            for body in ({"chat_template_kwargs": {"nonsense": 1}}, {"reasoning_effort": "high"},
                         {"chat_template_kwargs": {"messages": []}}):  # fmt: skip
                assert (await served.chat(**body)).status_code == 400

    asyncio.run(run())


def test_a_model_without_a_template_says_so(serve, no_template) -> None:
    async def run() -> None:
        async with serve(tokens=no_template) as served:
            error = (await served.chat()).json()["error"]
            assert error["code"] == "no_chat_template" and "/v1/completions" in error["message"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"functions": []}, "functions"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(serve, body, param) -> None:
    async def run() -> None:
        async with serve() as served:
            response = await served.chat(**body)
            assert response.status_code == 400
            if param is not None:
                assert response.json()["error"]["param"] == param

    asyncio.run(run())
