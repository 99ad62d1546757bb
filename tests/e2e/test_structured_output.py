"""Forms asked of `ridgepoint serve` by the official openai client: the real process, a real tokenizer, a random model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from serving import ServerProcess, checkpoint_server
from tiny_moe import write_tiny_moe

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "tags", "size"],
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "ä🦊"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
}  # fmt: skip
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}</tools>"
    '<tool_call>\n{"name": <name>, "arguments": <args>}\n</tool_call>\n{% endif %}'
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}\n{% endfor %}assistant: "
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    pytest.importorskip("transformers")
    folder = write_tiny_moe(tmp_path_factory.mktemp("forms") / "tiny-moe", template=TEMPLATE)
    with checkpoint_server(folder) as server:
        yield server


def check(text: str | None) -> None:
    thing = json.loads(text or "")
    assert thing.keys() == {"name", "tags", "size"}
    assert len(thing["name"]) <= 12 and set(thing["tags"]) <= {"new", "old", "ä🦊"} and 0 <= thing["size"] <= 99


def test_answers_have_the_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-moe",
        messages=HI,
        response_format=FORMAT,
        n=4,
        seed=1,
        max_tokens=450,
        logprobs=True,
        top_logprobs=2,
    )
    assert len({choice.message.content for choice in answer.choices}) == 4
    for choice in answer.choices:
        check(choice.message.content)
        assert choice.finish_reason == "stop" and choice.logprobs is not None
        assert "".join(one.token for one in choice.logprobs.content or [] if "bytes:" not in one.token)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-moe", "messages": HI, "response_format": FORMAT, "seed": 7, "max_tokens": 450}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "stop"
    check(whole)


class Thing(pydantic.BaseModel):
    kind: Literal["a", "b"]
    parts: list[bool] = pydantic.Field(max_length=3)
    left: Literal[1, 2] | None


def test_parse_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny-moe", messages=HI, response_format=Thing, seed=2, max_tokens=450, temperature=0.7
    )
    thing = answer.choices[0].message.parsed
    assert isinstance(thing, Thing)
    with client.chat.completions.stream(model="tiny-moe", messages=HI, response_format=Thing, seed=2) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Thing)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"choice": ["positive", "negative"]}, "positive|negative"),
        ({"regex": r"[a-z]{2,5}@example\.(com|org)"}, r"[a-z]{2,5}@example\.(com|org)"),
        ({"grammar": 'root ::= "SELECT " col ("," col)? ";"\ncol ::= [a-c]'}, "SELECT [a-c](,[a-c])?;"),
        ({"grammar": 'start: "x" DIGITS\nDIGITS: /[0-9]{3}/'}, "x[0-9]{3}"),
    ],
)
def test_what_users_of_vllm_send(client: openai.OpenAI, asked: dict[str, Any], pattern: str) -> None:
    extra = {"structured_outputs": asked}
    chat = client.chat.completions.create(model="tiny-moe", messages=HI, extra_body=extra)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    text = client.completions.create(model="tiny-moe", prompt=["a", "b"], max_tokens=60, extra_body=extra)
    for choice in text.choices:
        assert re.fullmatch(pattern, choice.text) and choice.finish_reason == "stop"


def test_what_cuts_an_answer_leaves_its_beginning(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-moe", "messages": HI, "response_format": FORMAT, "seed": 3}
    whole = client.chat.completions.create(**asked, max_tokens=450).choices[0].message.content or ""
    cut = client.chat.completions.create(**asked, max_tokens=5).choices[0]
    assert cut.finish_reason == "length" and whole.startswith(cut.message.content or "-")
    stopped = client.chat.completions.create(**asked, max_tokens=450, stop='":').choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == whole.partition('":')[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_schema_is_a_400_that_says_why(client: openai.OpenAI, stream: bool) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "strange"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strange") as caught:
        client.chat.completions.create(model="tiny-moe", messages=HI, response_format=bad, stream=stream)
    assert caught.value.param == "response_format.json_schema"


def test_forms_of_all_kinds_share_steps_and_leave_nothing(served: ServerProcess) -> None:
    """Many at once, a few of them cut by their clients: each is of its own form, and the engine is empty afterwards."""

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> None:
                digit = str(index % 10)
                extra = {"structured_outputs": {"regex": f"({digit}[a-z]){{20,40}}"}} if index % 3 else {}
                stream = await client.chat.completions.create(
                    model="tiny-moe", messages=HI, seed=index, max_tokens=90, stream=True, extra_body=extra
                )
                text = ""
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                    if index % 5 == 4 and len(text) > 10:
                        await stream.close()
                        return
                if extra:
                    assert re.fullmatch(f"({digit}[a-z]){{20,40}}", text)

            await asyncio.gather(*(one(index) for index in range(24)))

    asyncio.run(run())
    served.wait_for_metric("ridgepoint:num_requests_in_flight", 0)
    served.wait_for_metric("ridgepoint:kv_blocks_used", 0)
    metrics = served.metrics()
    assert metrics["ridgepoint:structured_masks_total"] > 100
    assert 0 < metrics["ridgepoint:structured_mask_seconds_total"] < 60


def test_json_objects(served: ServerProcess) -> None:
    """A random model may go on for ever inside one: it is cut, and what is there begins an object."""
    body = {"messages": HI, "response_format": {"type": "json_object"}, "max_tokens": 30, "temperature": 1.5, "seed": 1}
    choice = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    text = choice["message"]["content"]
    assert text.startswith("{") and (choice["finish_reason"] == "length" or isinstance(json.loads(text), dict))


# ---------------------------------------------------------------- tools

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather", "description": "The weather of a place.", "strict": True,
            "parameters": {
                "type": "object", "additionalProperties": False, "required": ["place", "days"],
                "properties": {
                    "place": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "ping"}},
]  # fmt: skip
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def check_call(name: str, arguments: str) -> None:
    values = json.loads(arguments)
    if name == "weather":
        assert values.keys() == {"place", "days"} and len(values["place"]) <= 9 and 1 <= values["days"] <= 9
    else:
        assert (name, values) == ("ping", {})


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, choice: Any) -> None:
    for seed in range(4):
        asked: Any = {
            "model": "tiny-moe", "messages": HI, "tools": TOOLS, "tool_choice": choice, "seed": seed, "max_tokens": 300,
            "parallel_tool_calls": False,
        }  # fmt: skip
        whole = client.chat.completions.create(**asked).choices[0]
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        (call,) = whole.message.tool_calls or []
        assert call.type == "function"
        check_call(call.function.name, call.function.arguments)
        assert choice == "required" or call.function.name == "weather"
        with client.chat.completions.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        assert kinds.count("tool_calls.function.arguments.delta") >= (5 if call.function.name == "weather" else 1)
        assert final.finish_reason == "tool_calls"
        (streamed,) = final.message.tool_calls or []
        assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_a_result_goes_back(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-moe", "tools": TOOLS, "seed": 3, "max_tokens": 200, "parallel_tool_calls": False}
    first = client.chat.completions.create(messages=HI, tool_choice=NAMED, **asked).choices[0].message
    (call,) = first.tool_calls or []
    history = [*HI, first, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = client.chat.completions.create(messages=history, tool_choice="required", **asked).choices[0]
    assert again.finish_reason == "tool_calls"
    free = client.chat.completions.create(messages=history, **(asked | {"max_tokens": 8}))
    assert free.choices[0].finish_reason in ("length", "stop")


def test_tools_that_cannot_be_called_are_refused(client: openai.OpenAI) -> None:
    bad: Any = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}]
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        client.chat.completions.create(model="tiny-moe", messages=HI, tools=bad, tool_choice="required")
    assert caught.value.param == "tools"
