"""Which tags a template names, and where in an answer a prompt ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from reasoning_tokens import TEXT_TAGS
from tiny_tokenizer import write_tokenizer

from ridgepoint.engine.tokenizer import Tokenizer, load_tokenizer
from ridgepoint.server.reasoning.tags import Place, place_behind, place_within, tags_of


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        ("{{ '<think>' + r + '</think>' }}", ("<think>", "</think>")),
        ("{% if '</think>' in c %}{% endif %}", ("<think>", "</think>")),
        ("[THINK]...[/THINK]", ("[THINK]", "[/THINK]")),
        ("<think> <thinking></thinking>", None),
        ("{{ messages }}", None),
    ],
)
def test_tags_are_those_that_the_template_names(
    tokenizer: Tokenizer, source: str, tags: tuple[str, str] | None
) -> None:
    found = tags_of(tokenizer.with_chat_template(source))
    assert (found and (found.opening, found.closing, found.special)) == (tags and (*tags, {}))


def test_tags_may_be_special_tokens(tmp_path: Path, no_template: Tokenizer) -> None:
    special = ["<think>", "</think>"]
    found = tags_of(load_tokenizer(write_tokenizer(tmp_path / "special", template="</think>", special=special)))
    assert found is not None and found.special == {"<think>": 3, "</think>": 4}
    assert tags_of(no_template) is None


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("<|im_start|>assistant\n", "before"),
        ("<|im_start|>assistant\n<think>\n", "inside"),
        ("<｜Assistant｜><think>", "inside"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("<｜Assistant｜></think>", "closed"),
        ("What is <think>?<|im_end|>\n<|im_start|>assistant\n", "before"),
        ("<think>\nWhat is </think>?<|im_end|>\n<|im_start|>assistant\n", "before"),
    ],
)
def test_the_end_of_a_prompt_alone_opens_reasoning(prompt: str, place: Place) -> None:
    assert place_behind(TEXT_TAGS, prompt) == place


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("The answer is", "words"),
        ("Tags like <think> are", "words"),
        ("\n<think>\nHm, ", "inside"),
        ("<think>Hm.</think>\n\n", "closed"),
        ("<think>Hm.</think>\n\nSo", "words"),
    ],
)
def test_a_message_that_is_continued_goes_on_where_it_stands(message: str, place: Place) -> None:
    assert place_within(TEXT_TAGS, message) == place
