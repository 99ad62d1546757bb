"""A served model that reasons between tags, by the official openai client: its template opens reasoning, or leaves it out.

The model is random, so a bias on the closing tag makes it end what it reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from commands import run
from serving import ServerProcess, checkpoint_server
from test_structured_output import FORMAT, HI, NAMED, TEMPLATE, TOOLS, check, check_call
from tiny_moe import write_tiny_moe
from told_twice import answer_of, reasoning_of

MODEL = "tiny-thinker"
TAGS = ["<think>", "</think>"]
OPENED = (
    TEMPLATE.replace("{{ m.content }}", "<think>{{ m.reasoning_content }}</think>{{ m.content }}")
    + "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '<think>\n' }}"
)
CLOSING = {"4": 5.0}  # the closing tag's id, behind three other special tokens and the opening one
OFF: Any = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return write_tiny_moe(tmp_path_factory.mktemp("reasoning") / MODEL, template=OPENED, special=TAGS)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[ServerProcess]:
    with checkpoint_server(folder) as server:
        yield server


def test_the_start_says_what_is_told_apart(served: ServerProcess) -> None:
    served.wait_for("^reasoning on: .* between <think> and </think>$")


def test_answers_are_told_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    kinds = [0, 0]
    for seed in range(8):
        _, told = answer_of(client, model=MODEL, seed=seed, max_tokens=60, logit_bias=CLOSING)
        kinds = [count + bool(text) for count, text in zip(kinds, told, strict=False)]
    assert min(kinds) > 2
    choice, (content, reasoning, _) = answer_of(client, model=MODEL, seed=0, max_tokens=9, logit_bias={"4": -100})
    assert (content, choice.message.content, choice.finish_reason) == ("", None, "length") and reasoning
    _, (content, reasoning, _) = answer_of(client, model=MODEL, seed=0, max_tokens=9, **OFF)
    assert content and not reasoning


def test_tokens_of_reasoning_are_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, seed=0, max_tokens=9, logit_bias={"4": -100})
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == answer.usage.completion_tokens == 9


def test_chat_shows_reasoning_beside_the_answer(served: ServerProcess, folder: Path, client: openai.OpenAI) -> None:
    asked: Any = {"temperature": 1.0, "seed": 3, "max_tokens": 9}
    answer = client.chat.completions.create(model=MODEL, messages=HI, **asked)
    thought = reasoning_of(answer.choices[0].message)
    assert thought and answer.choices[0].message.content is None, "another seed would reason for nine tokens"
    options = ["--temperature", "1", "--seed", "3", "--max-tokens", "9"]
    remark = "(9 tokens of reasoning and no answer: --max-tokens is too few)\n"
    for at in (["--url", served.url], [str(folder)]):
        assert run("chat", *at, *options, stdin="hi\n") == ("\n", f"{MODEL}\n{thought}\n{remark}")
    assert run("chat", "--url", served.url, "--hide-reasoning", *options, stdin="hi\n") == ("\n", f"{MODEL}\n{remark}")


@pytest.mark.parametrize("options", [{}, OFF], ids=["reasoning", "none"])
def test_forms_come_behind_reasoning(client: openai.OpenAI, options: Any) -> None:
    thoughts = 0
    for seed in range(4):
        asked: Any = {"response_format": FORMAT, "seed": seed, "max_tokens": 450, "logit_bias": CLOSING, **options}
        choice, (content, reasoning, _) = answer_of(client, model=MODEL, **asked)
        check(content)
        assert choice.finish_reason == "stop"
        thoughts += bool(reasoning)
    assert bool(thoughts) == (options == {})


def test_a_tool_that_must_be_called_is_called_and_the_answer_goes_back(client: openai.OpenAI) -> None:
    asked: Any = {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 400, "logit_bias": CLOSING}
    thoughts = 0
    for seed in range(3):
        choice, (content, reasoning, calls) = answer_of(client, model=MODEL, seed=seed, **asked)
        assert content == "" and choice.finish_reason == "tool_calls"
        ((name, arguments),) = calls
        assert name == "weather"
        check_call(name, arguments)
        thoughts += bool(reasoning)
    assert thoughts
    (call,) = choice.message.tool_calls
    history = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = client.chat.completions.create(model=MODEL, messages=history, seed=4, **(asked | {"max_tokens": 200}))
    assert again.choices[0].finish_reason == "tool_calls"
