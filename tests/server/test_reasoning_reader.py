"""Answers that reason between tags to what they tell, however they are cut into tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from reasoning_tokens import CUTS, IDS, SPECIAL_TAGS, SPECIAL_TOKENS, TEXT_TAGS, TEXT_TOKENS, WHOLE, ids_of

from ridgepoint.engine.text import TextRules
from ridgepoint.server.parts import Joined, Part, Thought, join
from ridgepoint.server.reasoning.reader import Reasoning, ReasoningReader
from ridgepoint.server.reasoning.tags import Place


def reader(place: Place, *, special: bool = False, **options: Any) -> ReasoningReader:
    tags, tokens = (SPECIAL_TAGS, SPECIAL_TOKENS) if special else (TEXT_TAGS, TEXT_TOKENS)
    return ReasoningReader(Reasoning(tags, place), tokens, TextRules(**options))


def parts_of(ids: Sequence[int], reading: ReasoningReader) -> list[Part]:
    """All that is told, each token accounted for."""
    parts: list[Part] = []
    num_released = num_chars = 0
    for number, token_id in enumerate(ids, 1):
        told = reading.push(token_id)
        parts += told.parts
        num_released += len(told.token_starts)
        assert num_released <= number and list(told.token_starts) == sorted(told.token_starts)
        num_chars += sum(len(part) for part in told.parts if isinstance(part, str))
        assert all(start <= num_chars for start in told.token_starts)
        if told.stop is not None:
            return parts
    told = reading.finish(cut=False)
    num_released += len(told.token_starts)
    assert num_released == len(ids) or (told.stop is not None and num_released < len(ids))
    assert reading.num_reasoning <= len(ids)
    return parts + list(told.parts)


def read(text: str, place: Place = "before", **options: Any) -> tuple[str, str]:
    """(content, reasoning), the same of every cut, and where tags are special tokens."""
    answers = [join(parts_of(ids_of(text, words), reader(place, **options))) for words in CUTS]
    answers.append(join(parts_of(ids_of(text), reader(place, special=True, **options))))
    assert all(answer == answers[0] and not answer.calls for answer in answers)
    return answers[0].content, answers[0].reasoning


def whole(text: str, place: Place) -> Joined:
    """What an answer tells, by its whole text."""
    if place == "words":
        return Joined(text, "", [])
    if place == "closed":
        return Joined(text.lstrip("\n"), "", [])
    opening = re.match("[ \t\n\r\x0b\x0c]*<think>", text)
    if place == "before":
        if opening is None:
            return Joined(text, "", [])
        text = text[opening.end() :]
    thought, closing, words = text.partition("</think>")
    return Joined(words.lstrip("\n"), thought.strip("\n") if closing else thought.lstrip("\n"), [])


@pytest.mark.parametrize(
    ("place", "text", "content", "reasoning"),
    [
        ("before", "<think>\nHm, 🦊.\n</think>\n\nSo.", "So.", "Hm, 🦊."),  # Qwen3
        ("before", "\n<think>Hm.</think>\nSo.", "So.", "Hm."),  # GLM
        ("before", "<think>\n\n</think>\n\nSo.", "So.", ""),
        ("before", "So. <think>Hm.</think>", "So. <think>Hm.</think>", ""),
        ("before", "  So\n\n", "  So\n\n", ""),
        ("before", "So.</think>", "So.</think>", ""),
        ("before", "<think>a<think>b</think>c</think><think>d", "c</think><think>d", "a<think>b"),
        ("inside", "\nHm,\n\n hm. \n</think>\n\n So.\n", " So.\n", "Hm,\n\n hm. "),  # R1, Qwen3-Thinking, MiniMax
        ("inside", "</think>So.", "So.", ""),
        ("closed", "\nSo.\n", "So.\n", ""),
        ("words", "\nSo. </think>", "\nSo. </think>", ""),
    ],
)
def test_reasoning_is_told_apart(place: Place, text: str, content: str, reasoning: str) -> None:
    assert read(text, place) == (content, reasoning)
    assert whole(text, place) == Joined(content, reasoning, [])


@pytest.mark.parametrize(
    ("place", "text", "content", "reasoning"),
    [
        ("before", "<think>\nHm.\n", "", "Hm.\n"),
        ("inside", "Hm. </thi", "", "Hm. </thi"),
        ("before", "\n <thi", "\n <thi", ""),
        ("before", "\n", "\n", ""),
        ("before", "", "", ""),
        ("inside", "\n", "", ""),
        ("inside", "Hm.</think>\n\n", "", "Hm."),
    ],
)
def test_an_answer_that_is_cut(place: Place, text: str, content: str, reasoning: str) -> None:
    """Without a closing tag all of it is reasoning."""
    assert read(text, place) == (content, reasoning)


def test_reasoning_and_words_are_told_as_they_come() -> None:
    reading = reader("before")
    told = [reading.push(one).parts for one in ids_of("<think>\nHm\n</think>\n\nab")]
    assert told == [(), (), (Thought("Hm"),), (), (), (), ("a",), ("b",)]


def test_stop_strings_end_words_alone() -> None:
    text = "<think>Hm.\n\nSo.</think>\n\nSo. Hm.\n\nHm"
    assert read(text, stops=["\n\n"]) == ("So. Hm.", "Hm.\n\nSo.")
    assert read(text, stops=["Hm"], include_stop=True) == ("So. Hm", "Hm.\n\nSo.")
    assert read("Hm</think>", stops=["</"]) == ("Hm", "")


def test_a_stop_string_counts_behind_the_least_tokens_reasoning_included() -> None:
    ids = ids_of("<think>ab</think>xx")
    for min_tokens, content in ((0, ""), (4, ""), (5, "x"), (6, "xx")):
        assert join(parts_of(ids, reader("before", stops=["x"], min_tokens=min_tokens))).content == content


@pytest.mark.parametrize(
    ("place", "words", "text", "count"),
    [
        ("before", WHOLE, "<think>\n\nHm.\n</think>\n\nSo", 4),  # \n\n Hm . \n
        ("before", WHOLE, "<think>Hm.", 2),
        ("before", WHOLE, "Hm.", 0),
        ("inside", WHOLE, "Hm</thx", 6),
        ("inside", WHOLE, "</think>Hm", 0),
        ("inside", [".</", "think>\n\nSo"], "a.</think>\n\nSo", 2),  # a .</
        ("before", ["nk>\n"], "<think>\na</think>", 2),  # nk>\n a
        ("closed", WHOLE, "Hm", 0),
    ],
)
def test_tokens_of_reasoning_are_counted(place: Place, words: list[str], text: str, count: int) -> None:
    reading = reader(place)
    parts_of(ids_of(text, words), reading)
    assert reading.num_reasoning == count


def test_bytes_that_are_no_characters() -> None:
    fox = [1 + byte for byte in "🦊".encode()]
    ids = [IDS["<think>"], *fox[:2], IDS["</think>"], *fox[2:], *fox]
    answer = join(parts_of(ids, reader("before")))
    assert (answer.content, answer.reasoning) == ("\ufffd\ufffd🦊", "\ufffd")


def test_special_tokens_are_hidden_unless_they_are_tags_or_asked_for() -> None:
    ids = [*ids_of("<think>a"), 0, *ids_of("</think>b"), 0, *ids_of("<think>")]
    reading = reader("before", special=True)
    assert join(parts_of(ids, reading)) == Joined("b<think>", "a", [])
    assert reading.num_reasoning == 2, "hidden ones count"
    answer = join(parts_of(ids, reader("before", special=True, skip_special=False)))
    assert answer == Joined("b</s><think>", "a</s>", [])
