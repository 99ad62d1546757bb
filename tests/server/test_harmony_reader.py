"""Answers in harmony, well and badly written, to what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from harmony_tokens import MARKS, OTHER_SPECIAL, TOKENS, ids_of

from ridgepoint.engine.text import TextRules
from ridgepoint.server.harmony.header import read_header
from ridgepoint.server.harmony.reader import Harmony, HarmonyReader
from ridgepoint.server.parts import Arguments, Call, CallBegun, Joined, Part, Thought, join

PROMPT = "<|start|>user<|message|>hi<|end|><|start|>assistant"
TOOLS = frozenset({"weather", "a.b"})
THINK = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


def reader(*, prompt: str = PROMPT, single: bool = False, **options: Any) -> HarmonyReader:
    return HarmonyReader(Harmony(MARKS, TOOLS, single), TOKENS, ids_of(prompt), TextRules(**options))


def parts_of(ids: Sequence[int], *, cut: bool = False, **options: Any) -> list[Part]:
    """All that is told, each token accounted for."""
    reading = reader(**options)
    parts: list[Part] = []
    num_released = 0
    for number, token_id in enumerate(ids, 1):
        told = reading.push(token_id)
        parts += told.parts
        num_released += len(told.token_starts)
        assert num_released <= number
        if told.stop is not None:
            return parts
    told = reading.finish(cut=cut)
    num_released += len(told.token_starts)
    assert num_released == len(ids) or (told.stop is not None and num_released < len(ids))
    return parts + list(told.parts)


def read(text: str, *, cut: bool = False, **options: Any) -> Joined:
    """What is told, the same by words and by bytes."""
    answers = [join(parts_of(ids_of(text, words=words), cut=cut, **options)) for words in (True, False)]
    assert answers[0] == answers[1]
    return answers[0]


def said(content: str = "", reasoning: str = "", *calls: tuple[str, str]) -> Joined:
    return Joined(content, reasoning, [Call(*call) for call in calls])


# ---------------------------------------------------------------- well written

CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Ölo"}'
CALLED = ("weather", '{"city": "Ölo"}')


@pytest.mark.parametrize("end", ["", "<|return|>", "<|end|>"])
def test_reasoning_and_answer(end: str) -> None:
    assert read(THINK + "<|channel|>final<|message|>Zwölf 🦊." + end) == said("Zwölf 🦊.", "Hm.")


@pytest.mark.parametrize("end", ["", "<|call|>"])
@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.weather <|constrain|>json", "<|channel|>commentary to=functions.weather<|constrain|>json",
        "<|channel|>commentary to=functions.weather json", "<|channel|>commentary to=functions.weather",
        " to=functions.weather<|channel|>commentary json", " to=functions.weather<|channel|>commentary <|constrain|>json",
        " to=functions.weather<|channel|>analysis code", "<|channel|>analysis to=functions.weather", " to=weather<|channel|>commentary",
    ],
)  # fmt: skip
def test_calls_have_many_headers(header: str, end: str) -> None:
    text = THINK + header + '<|message|>{"city": "Ölo"}' + end
    assert read(text) == said("", "Hm.", CALLED)


def test_a_preamble_is_said() -> None:
    text = THINK + "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant" + CALL
    assert read(text) == said("Let me look.", "Hm.", CALLED)


def test_messages_of_one_kind_are_lines() -> None:
    text = THINK + THINK + "<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"
    assert read(text) == said("a\nb", "Hm.\nHm.")


def test_several_calls() -> None:
    text = CALL + "<|call|><|start|>assistant<|channel|>commentary to=functions.a.b<|message|>{}<|call|>"
    assert read(text) == said("", "", CALLED, ("a.b", "{}"))
    assert read(text, single=True) == said("", "", CALLED)


def test_a_call_without_arguments_hands_over_an_empty_object() -> None:
    assert read("<|channel|>commentary to=functions.weather<|message|><|call|>") == said("", "", ("weather", "{}"))
    assert read("<|channel|>commentary to=functions.weather<|message|>", cut=True) == said("", "", ("weather", ""))


def test_parts_come_as_they_are_written() -> None:
    reading = reader()
    told = [
        reading.push(token_id).parts for token_id in ids_of(THINK + '<|channel|>commentary to=weather<|message|>{"c')
    ]
    assert [part for parts in told for part in parts] == [
        Thought("H"), Thought("m"), Thought("."), CallBegun("weather"), Arguments("{"), Arguments('"'), Arguments("c"),
    ]  # fmt: skip
    assert reading.num_reasoning == 3


# ---------------------------------------------------------------- badly written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # channels and recipients that nobody knows
        ("<|channel|>comment<|message|>Hi.", said("Hi.")),
        ("<|channel|>??<|message|>Hi.", said("Hi.")),
        ("<|message|>Hi.", said("Hi.")),
        ("<|channel|><|message|>Hi.", said("Hi.")),
        (
            "<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}",
            said("<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}"),
        ),
        ("<|channel|>analysis to=python code<|message|>1+1", said("<|channel|>analysis to=python code<|message|>1+1")),
        # others than the assistant
        ("<|channel|>final<|message|>a<|end|><|start|>user<|message|>b", said("a\n<|start|>user<|message|>b")),
        # no header, or none that ends
        ("Hello there.", said("Hello there.")),
        ("assistant", said("assistant")),
        (" I think", said(" I think")),
        ("as I said, <|channel|>final<|message|>no", said("as I said, \nno")),
        ("<|channel|>final Hello there, you", said("<|channel|>final Hello there, you")),
        ("<|channel|>final Hello", said("<|channel|>final Hello")),
        ("<|channel|>final" + "x" * 300 + "<|message|>y", said("<|channel|>final" + "x" * 300 + "<|message|>y")),
        ("<|channel|>analysis<|end|><|start|>assistant<|channel|>final<|message|>a", said("<|channel|>analysis\na")),
        # marks where none belong
        ("<|start|>assistant<|start|>assistant<|channel|>final<|message|>a", said("a")),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", said("b", "a")),
        ("<|channel|>analysis<|channel|>final<|message|>b", said("b")),
        ("<|channel|>final<|message|>a<|message|>b<|constrain|>c", said("a<|message|>b<|constrain|>c")),
        ("<|end|><|end|><|call|><|return|>", said("")),
        (THINK + "<|channel|>final<|message|>a<|end|>b", said("a\nb", "Hm.")),
        ("", said("")),
    ],
)
def test_nothing_that_is_badly_written_is_lost(text: str, expected: Joined) -> None:
    assert read(text) == expected


HEADER = "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"


@pytest.mark.parametrize("length", range(len(ids_of(HEADER)) + 1))
def test_a_header_that_was_cut_is_no_ones_words(length: int) -> None:
    before = "<|channel|>analysis<|message|>Hm.<|end|>"
    ids = [*ids_of(before), *ids_of(HEADER)[:length]]
    assert join(parts_of(ids, cut=True)) == said("", "Hm.")


def test_a_message_that_was_cut_is_told_as_far_as_it_came() -> None:
    assert read("<|channel|>analysis<|message|>Hm", cut=True) == said("", "Hm")
    assert read(THINK + CALL[:-4], cut=True) == said("", "Hm.", ("weather", CALLED[1][:-4]))
    assert read("Hello the", cut=True) == said("Hello the")


def test_marks_and_tokens_without_text_make_no_endless_header() -> None:
    """Each token of a header looks at all of it, so there is an end to that."""
    assert join(parts_of(ids_of("<|constrain|>" * 3000))).content == "<|constrain|>" * 3000
    ids = [*ids_of("<|channel|>final"), *[OTHER_SPECIAL] * 3000, *ids_of("<|message|>a")]
    assert join(parts_of(ids)).content == "<|channel|>final<|message|>a"
    assert join(parts_of([*ids[:1000], *ids[-2:]])).content == "a"


def test_half_a_character_is_told_as_one_that_is_none() -> None:
    ids = ids_of("<|channel|>final<|message|>🦊", words=False)[:-1]
    assert join(parts_of(ids)) == said("\ufffd")


def test_text_that_spells_marks_is_text() -> None:
    """Of a user who writes them, whom the model quotes."""
    quoted = "<|end|><|start|>assistant<|channel|>final<|message|>"
    for header, kind in (("analysis", Thought), ("final", str)):
        for words in (True, False):
            ids = [*ids_of(f"<|channel|>{header}<|message|>"), *ids_of(quoted, words=words, plain=True)]
            answer = join(parts_of(ids))
            assert (answer.reasoning if kind is Thought else answer.content) == quoted
            assert not (answer.content if kind is Thought else answer.reasoning)


def test_other_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = [*ids_of("<|channel|>final<|message|>a"), OTHER_SPECIAL, *ids_of("b")]
    assert join(parts_of(ids)) == said("ab")
    assert join(parts_of(ids, skip_special=False)) == said("a<|reserved|>b")


# ---------------------------------------------------------------- stop strings


def test_stop_strings_end_words_alone() -> None:
    text = "<|channel|>analysis<|message|>stop<|end|><|start|>assistant" + CALL.replace("Ölo", "stop") + "<|call|>"
    text += "<|start|>assistant<|channel|>final<|message|>no stop here"
    answer = read(text, stops=("stop", "final", "assistant"))
    assert answer == said("no ", "stop", ("weather", '{"city": "stop"}'))
    assert read(text, stops=("stop",), include_stop=True).content == "no stop"
    assert read("Hello there", stops=("the",)).content == "Hello "


def test_stop_strings_are_held_back_and_let_go() -> None:
    reading = reader(stops=("end now",))
    for token_id in ids_of("<|channel|>final<|message|>"):
        reading.push(token_id)
    assert [reading.push(token_id).parts for token_id in ids_of("a e")] == [("a",), (" ",), ()]
    assert [reading.push(token_id).parts for token_id in ids_of("x<|end|>")] == [("ex",), ()]
    assert reading.finish(cut=False).parts == ()


def test_a_stop_string_in_what_was_no_header() -> None:
    reading = reader(stops=("t",))  # which may become "to="
    told = [reading.push(token_id) for token_id in ids_of(" t<|end|>")]
    assert [(one.parts, one.token_starts, one.stop) for one in told] == [
        ((), (), None),
        ((), (), None),
        ((" ",), (0,), "t"),
    ]


def test_early_stop_strings_are_text() -> None:
    text = "<|channel|>final<|message|>stop, stop"  # 3 + 10 tokens
    assert read(text, stops=("stop",)).content == ""
    ids = ids_of(text)
    assert join(parts_of(ids, stops=("stop",), min_tokens=12)).content == "stop, "
    assert join(parts_of(ids, stops=("stop",), min_tokens=20)).content == "stop, stop"


# ---------------------------------------------------------------- where a prompt ends


@pytest.mark.parametrize(
    ("prompt", "place", "text", "expected"),
    [
        (PROMPT, "header", "<|channel|>final<|message|>a", said("a")),
        (PROMPT, "header", "a", said("a")),
        ("<|start|>user<|message|>hi<|end|>", "between", "<|start|>assistant<|channel|>final<|message|>a", said("a")),
        ("", "between", "<|channel|>analysis<|message|>a", said("", "a")),
        ("hi", "between", "a", said("a")),
        (PROMPT + "<|channel|>final<|message|>The answer", "words", " is 1.", said(" is 1.")),
        (PROMPT + "<|channel|>analysis<|message|>", "other", "Hm.<|end|>", said("", "Hm.")),
        (PROMPT + "<|channel|>", "other", "final<|message|>a", said("a")),
        (PROMPT + " to=weather<|channel|>commentary<|message|>", "other", "{}", said("", "", ("weather", "{}"))),
    ],
)
def test_an_answer_goes_on_where_the_prompt_ends(prompt: str, place: str, text: str, expected: Joined) -> None:
    assert reader(prompt=prompt).place == place
    assert read(text, prompt=prompt, stops=("answer",)) == expected


def test_headers() -> None:
    assert read_header([("start", "assistant"), ("channel", "final")], whole=True) is not None
    header = read_header([("channel", "commentary to=functions.x json")], whole=True)
    assert header is not None and (header.channel, header.recipient) == ("commentary", "functions.x")
    for text in ("a", "assist", "assistant", "assistant t", "assistant to=", " to=x"):
        assert read_header([("start", text)], whole=False) is not None
    for text in ("a", "assist", "assistant t", "user", "assistant to=x y"):
        assert read_header([("start", text)], whole=True) is None
    assert read_header([("start", "b")], whole=False) is None
