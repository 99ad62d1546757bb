"""Chats with models that reason between tags: where reasoning stands by each family's prompt, and what must come behind it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from test_harmony_chat import HI, ROOM
from tiny_tokenizer import write_tokenizer
from toy_engine import ToyEngine

from ridgepoint.engine.tokenizer import Tokenizer, load_tokenizer

# How families show past reasoning, and how their prompts end.
SHOWN = (
    "{% if tools %}{{ tools | tojson }}<tool_call>\n{\"name\": n, \"arguments\": a}\n</tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)  # fmt: skip
FAMILIES = {
    "qwen3": SHOWN + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "opened": SHOWN + "{{ '<think>\n' }}{% endif %}",
    "deepseek": SHOWN + "{{ '<think>' if thinking else '</think>' }}{% endif %}",
    "glm": SHOWN + "{{ '\n<think></think>' if enable_thinking is false else '' }}{% endif %}",
}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
CALL = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
PING: dict[str, Any] = {"type": "function", "function": {"name": "ping"}}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Its tags are text of many tokens."""
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("thinking"), template="</think>"))


@pytest.fixture(scope="session")
def special(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    tags = ["<think>", "</think>"]
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("special"), template="</think>", special=tags))


def ask(serve: Any, tokens: Tokenizer, family: str, answer: str, **body: Any) -> tuple[Any, Any]:
    """The response, and what the engine was handed."""
    config = body.pop("config", {})

    async def run() -> tuple[Any, Any]:
        engine = ToyEngine(ready=ROOM, answer=[*tokens.encode(answer, add_special_tokens=False), 0])
        served_tokens = tokens.with_chat_template(FAMILIES[family])
        async with serve(engine, tokens=served_tokens, **config) as served:
            return await served.chat(**body), engine.submitted

    return asyncio.run(run())


def message_of(serve: Any, tokens: Tokenizer, family: str, answer: str, **body: Any) -> tuple[str | None, str | None]:
    """(content, reasoning) of an answer, the same whole and streamed."""
    response, _ = ask(serve, tokens, family, answer, **body)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    told = message["content"], message.get("reasoning_content")
    response, _ = ask(serve, tokens, family, answer, stream=True, **body)
    deltas = [event["choices"][0]["delta"] for event in events_of(response)]
    for name, text in zip(("content", "reasoning_content"), told, strict=True):
        assert "".join(delta.get(name) or "" for delta in deltas) == (text or "")
    return told


def events_of(response: Any) -> list[Any]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("family", "body", "answer", "content", "reasoning"),
    [
        ("qwen3", {}, "<think>\nHm.\n</think>\n\nSo.", "So.", "Hm."),
        ("qwen3", {}, "So.", "So.", None),
        ("qwen3", OFF, "So. <think>", "So. <think>", None),
        ("opened", {}, "Hm.\n</think>\n\nSo.", "So.", "Hm."),
        ("deepseek", {"chat_template_kwargs": {"thinking": True}}, "Hm.</think>So.", "So.", "Hm."),
        ("deepseek", {}, "So.", "So.", None),
        ("glm", {}, "\n<think>Hm.</think>\nSo.", "So.", "Hm."),
        ("glm", OFF, "\nSo.", "So.", None),
    ],
)
def test_each_familys_answers(
    serve, plain, special, family: str, body: Any, answer: str, content: str, reasoning: str | None
) -> None:
    for tokens in (plain, special):
        assert message_of(serve, tokens, family, answer, **body) == (content, reasoning)


def test_tokens_of_reasoning_are_in_the_usage(serve, plain: Tokenizer, special: Tokenizer) -> None:
    for tokens in (plain, special):
        response, _ = ask(serve, tokens, "qwen3", "<think>Hm, hm.</think>So.", n=2)
        reasoning = 2 * len(tokens.encode("Hm, hm.", add_special_tokens=False))
        usage = response.json()["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning < usage["completion_tokens"]
        response, _ = ask(
            serve, tokens, "qwen3", "<think>Hm, hm.</think>So.", stream=True, stream_options={"include_usage": True}
        )
        last = events_of(response)[-1]
        assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] == reasoning // 2


def test_an_answer_that_is_cut_is_reasoning_as_far_as_it_came(serve, special: Tokenizer) -> None:
    num_tokens = len(special.encode("Hm, hm.</think>So.", add_special_tokens=False))
    for max_tokens in range(1, num_tokens + 1):
        response, _ = ask(serve, special, "opened", "Hm, hm.</think>So.", max_tokens=max_tokens)
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "length"
        reasoning, content = choice["message"]["reasoning_content"], choice["message"]["content"]
        assert "Hm, hm.".startswith(reasoning) and (content is None or reasoning == "Hm, hm.")
    assert content == "So."


def test_log_probabilities_list_every_token(serve, plain: Tokenizer) -> None:
    answer = "<think>\nHm.\n</think>\n\nSo."
    whole, _ = ask(serve, plain, "qwen3", answer, logprobs=True)
    listed = whole.json()["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in listed) == answer
    streamed, _ = ask(serve, plain, "qwen3", answer, logprobs=True, stream=True)
    choices = [event["choices"][0] for event in events_of(streamed)]
    assert [one for choice in choices for one in (choice["logprobs"] or {}).get("content", [])] == listed


def test_stop_strings_end_what_is_said_alone(serve, plain: Tokenizer) -> None:
    told = message_of(serve, plain, "qwen3", "<think>Hm.\n\nHm.</think>\n\nSo. Hm.", stop=["\n\n", "Hm"])
    assert told == ("So. ", "Hm.\n\nHm.")


def test_calls_are_read_behind_reasoning_alone(serve, plain: Tokenizer) -> None:
    answer = f"<think>\n{CALL}?\n</think>\n\n{CALL}"
    response, _ = ask(serve, plain, "qwen3", answer, tools=[PING])
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and len(choice["message"]["tool_calls"]) == 1
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (None, CALL + "?")
    response, _ = ask(serve, plain, "qwen3", answer, tools=[PING], stream=True)
    deltas = [event["choices"][0]["delta"] for event in events_of(response)]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == CALL + "?"
    assert [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls", []) if "id" in call] == [
        "ping"
    ]


def test_it_can_be_left_in_the_text(serve, plain: Tokenizer) -> None:
    answer, off = "Hm.\n</think>\n\nSo.", {"reasoning": "off"}
    assert message_of(serve, plain, "opened", answer, config=off) == (answer, None)
    _, submitted = ask(serve, plain, "opened", answer, config=off, response_format={"type": "json_object"})
    assert submitted[0].grammar.within is None


def test_completions_show_text_as_it_is(serve, plain: Tokenizer) -> None:
    async def run() -> Any:
        engine = ToyEngine(ready=ROOM, answer=[*plain.encode("<think>Hm.</think>", add_special_tokens=False), 0])
        async with serve(engine, tokens=plain) as served:
            return (await served.complete(max_tokens=50)).json()

    answer = asyncio.run(run())
    assert answer["choices"][0]["text"] == "<think>Hm.</think>"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


# ---------------------------------------------------------------- prompts


def test_past_reasoning_reaches_the_template(serve, plain: Tokenizer) -> None:
    messages = [*HI, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}, *HI]
    _, submitted = ask(serve, plain, "qwen3", "So.", messages=messages)
    prompt = plain.decode(submitted[0].prompt_ids, skip_special=False)
    assert "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nSo.<|im_end|>" in prompt


def test_tags_that_users_write_open_nothing(serve, plain: Tokenizer) -> None:
    told = message_of(serve, plain, "qwen3", "An opening tag.", content="What is <think>?")
    assert told == ("An opening tag.", None)


@pytest.mark.parametrize(
    ("begun", "answer", "content", "reasoning"),
    [
        ("<think>\nHm, ", "hm.\n</think>\n\nSo.", "So.", "hm."),
        ("The tag ", "<think> opens.", "<think> opens.", None),
        ("<think>Hm.</think>", "\n\nSo.", "So.", None),
    ],
)
def test_a_last_message_is_continued(
    serve, plain: Tokenizer, begun: str, answer: str, content: str, reasoning: str | None
) -> None:
    messages = [*HI, {"role": "assistant", "content": [{"type": "text", "text": begun}]}]
    body = {"messages": messages, "continue_final_message": True}
    assert message_of(serve, plain, "qwen3", answer, **body) == (content, reasoning)


# ---------------------------------------------------------------- what must come


@pytest.mark.parametrize(
    "body",
    [{"response_format": {"type": "json_object"}}, {"tools": [PING], "tool_choice": "required"}],
    ids=["form", "call"],
)
@pytest.mark.parametrize(
    ("family", "options", "begins"),
    [
        ("opened", {}, "start: thought breaks @form"),
        ("qwen3", {}, 'start: ("\\n"? "<think>" thought breaks)? @form'),
        ("qwen3", OFF, None),
        ("deepseek", {}, None),
    ],
)
def test_what_must_come_comes_behind_reasoning(
    serve, plain: Tokenizer, family: str, options: Any, begins: str | None, body: Any
) -> None:
    _, submitted = ask(serve, plain, family, "So.", max_tokens=1, **options, **body)
    within = submitted[0].grammar.within
    assert within is None if begins is None else within.startswith(begins + "\n")


def test_line_breaks_where_a_form_begins_are_its_own(serve, plain: Tokenizer) -> None:
    extra = {"structured_outputs": {"regex": "\n+So"}}
    assert message_of(serve, plain, "glm", "\nSo", **OFF, **extra) == ("\nSo", None)


def test_what_is_said_at_the_start(serve, plain: Tokenizer, no_template: Tokenizer, tmp_path: Path) -> None:
    async def note(tokens: Tokenizer, **config: Any) -> str:
        async with serve(tokens=tokens, **config) as served:
            return str(served.service.reasoning_note)

    thinking = plain.with_chat_template(FAMILIES["qwen3"])
    assert asyncio.run(note(thinking)) == "reasoning on: the chat template has it between <think> and </think>"
    assert "as asked for" in asyncio.run(note(thinking, reasoning="off"))
    assert "shows none" in asyncio.run(note(plain.with_chat_template("{{ messages }}")))
    assert "no chat template" in asyncio.run(note(no_template))
