"""A served gpt-oss by the official openai client: reasoning, words, forms and calls, whole and streamed.

The model is random, so a bias on harmony's marks makes it write many messages, most of them badly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import ServerProcess, checkpoint_server
from test_structured_output import FORMAT, HI, NAMED, TOOLS, check, check_call
from tiny_gpt_oss import IDS, write_tiny_gpt_oss
from told_twice import answer_of

MODEL = "tiny-gpt-oss"
ENDING = {str(IDS["end"]): 6.0}  # messages end, so that another begins
CHAOS = {str(token_id): 4.0 for name, token_id in IDS.items() if name not in ("call", "return")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    pytest.importorskip("transformers")
    folder = write_tiny_gpt_oss(tmp_path_factory.mktemp("harmony") / MODEL)
    with checkpoint_server(folder) as server:
        yield server


def test_random_answers_are_told_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    kinds = [0, 0]
    for seed in range(12):
        _, told = answer_of(
            client, model=MODEL, seed=seed, tools=TOOLS, temperature=1.2, max_tokens=60, logit_bias=CHAOS
        )
        kinds = [count + bool(text) for count, text in zip(kinds, told, strict=False)]
    assert kinds[0] > 3, "a random model's messages have no headers: they are words"


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, choice: Any) -> None:
    thoughts = 0
    for seed in range(6):
        asked: Any = {"tools": TOOLS, "tool_choice": choice, "seed": seed, "max_tokens": 600, "logit_bias": ENDING}
        whole, (_, reasoning, calls) = answer_of(client, model=MODEL, **asked)
        assert whole.finish_reason == "tool_calls"
        ((name, arguments),) = calls
        check_call(name, arguments)
        assert choice == "required" or name == "weather"
        thoughts += bool(reasoning)
    assert thoughts, "reasoning may come before a call"


def test_forms_are_those_of_the_final_message(client: openai.OpenAI) -> None:
    thoughts = 0
    for seed in range(6):
        asked: Any = {"response_format": FORMAT, "seed": seed, "max_tokens": 600, "logit_bias": ENDING}
        whole, (content, reasoning, _) = answer_of(client, model=MODEL, **asked)
        check(content)
        assert whole.finish_reason == "stop"
        thoughts += bool(reasoning)
    assert thoughts
    extra = {"structured_outputs": {"choice": ["yes", "no"]}}
    _, (content, _, _) = answer_of(client, model=MODEL, seed=1, logit_bias=ENDING, extra_body=extra)
    assert content in ("yes", "no")


def test_an_answer_goes_back(client: openai.OpenAI) -> None:
    """With its reasoning, and what the tool gave."""
    asked: Any = {"model": MODEL, "tools": TOOLS, "tool_choice": NAMED, "logit_bias": ENDING}
    first = client.chat.completions.create(messages=HI, seed=1, max_tokens=600, **asked).choices[0].message
    (call,) = first.tool_calls or []
    history = [*HI, first, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sun": True})}]
    again = client.chat.completions.create(messages=history, seed=2, max_tokens=300, **asked)
    assert again.choices[0].finish_reason == "tool_calls"
    assert again.usage is not None and again.usage.prompt_tokens > 60


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HI, "tools": TOOLS, "tool_choice": NAMED, "seed": 3}
    with client.chat.completions.stream(**asked, max_tokens=600, logit_bias=ENDING) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert len(pieces) > 5 and "".join(pieces) == call.function.arguments
    check_call(call.function.name, call.function.arguments)
