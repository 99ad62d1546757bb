"""Tool calls: every family's form, read and enforced, and what requests may say of tools."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from babbling import babble
from tiny_tokenizer import CHATML, write_tokenizer
from toy_engine import ToyEngine

from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.protocol import Grammar, Ready
from ridgepoint.engine.text import TokenBytes
from ridgepoint.engine.tokenizer import Tokenizer, load_tokenizer
from ridgepoint.errors import RequestError
from ridgepoint.server.parts import Arguments, Call, CallBegun
from ridgepoint.server.tool_calls.form import ToolFormat
from ridgepoint.server.tool_calls.known import format_of
from ridgepoint.server.tool_calls.stream import ToolStream
from ridgepoint.server.tools import _literal

# What a template's text shows of each form, and two calls in it.
WEATHER = {"city": "Oslo", "days": 3}
FORMS: dict[str, tuple[str, str]] = {
    "hermes": (
        '<tool_call>\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>',
    ),
    "qwen coder": (
        "<tool_call>\n<function=example>\n<parameter=a>\nvalue\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=ping>\n</function>\n</tool_call>",
    ),
    "glm": (
        "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>ping\n</tool_call>",
    ),
    "minimax": (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Oslo</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="ping">\n</invoke>\n</minimax:tool_call>',
    ),
    "deepseek v3": (
        "<｜tool▁calls▁begin｜>```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n'
        "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek v3.1": (
        "<｜tool▁calls▁begin｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo", "days": 3}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "mistral": (
        "[TOOL_CALLS] [",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}, {"name": "ping", "arguments": {}}]',
    ),
    "later mistral": (
        "[TOOL_CALLS]' + name + '[ARGS]",
        '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 3}[TOOL_CALLS]ping[ARGS]{}',
    ),
    "granite": (
        "<|tool_call|>",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}, {"name": "ping", "arguments": {}}]',
    ),
    "phi": (
        "<|tool_call|><|/tool_call|>",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}, {"name": "ping", "arguments": {}}]'
        "<|/tool_call|>",
    ),
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object", "required": ["city"], "additionalProperties": False,
        "properties": {
            "city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["C", "F"]}, "mode": {"const": "a<b"}, "note": {"anyOf": [{"enum": ["x"]}, {"type": "null"}]}, "at": {"$ref": "#/$defs/place"}, "strict": {"type": "boolean"},
        },
        "$defs": {
            "place": {
                "type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False,
            }
        },
    },
    "ping": {"type": "object", "properties": {}, "additionalProperties": False},
}  # fmt: skip


def form(name: str) -> ToolFormat:
    found = format_of(FORMS[name][0])
    assert found is not None
    return found


def parts_of(format_: ToolFormat, pieces: Iterable[str], *, single: bool = False) -> list[str | Call]:
    """What a stream tells: neighbouring texts joined, and calls with their arguments."""
    stream = ToolStream(format_, SCHEMAS, single=single)
    told = [part for piece in pieces for part in stream.push(piece)] + stream.push("", final=True)
    joined: list[str | Call] = []
    for part in told:
        last = joined[-1] if joined else None
        if isinstance(part, CallBegun):
            joined.append(Call(part.name, ""))
        elif isinstance(part, Arguments):
            assert isinstance(last, Call), "arguments belong to the call begun last"
            joined[-1] = Call(last.name, last.arguments + part.text)
        elif isinstance(last, str):
            joined[-1] = last + str(part)
        else:
            joined.append(str(part))
    return joined


def read(parts: list[str | Call]) -> list[Any]:
    return [part if isinstance(part, str) else (part.name, json.loads(part.arguments)) for part in parts]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_read_however_they_are_cut(name: str) -> None:
    text = "Let me see. <tool " + FORMS[name][1]
    expected = ["Let me see. <tool ", ("weather", WEATHER), ("ping", {})]
    for size in (1, 2, 3, 7, 1000):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert read(parts_of(form(name), pieces)) == expected, size
    assert read(parts_of(form(name), text, single=True)) == expected[:2]


@pytest.mark.parametrize("name", FORMS)
def test_a_call_is_told_while_it_comes(name: str) -> None:
    """Its tool as soon as it is sure, and each character of a string at once."""
    whole = FORMS[name][1]
    stream = ToolStream(form(name), SCHEMAS, single=False)
    begun = whole.index("Oslo")
    parts = stream.push(whole[:begun])
    assert parts[0] == CallBegun("weather") and all(isinstance(part, Arguments) for part in parts[1:])
    for char in "Oslo":
        assert stream.push(char)[-1] == Arguments(char)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_call_is_text(name: str) -> None:
    format_ = form(name)
    whole = FORMS[name][1]
    unknown = whole.replace("weather", "whither").replace("ping", "pong")
    for text in (
        "plain",
        format_.begin[:-1],
        format_.begin + "what?" + (format_.end or ""),
        unknown,
        whole[: whole.index("weather") + 4],
    ):
        assert read(parts_of(format_, text)) == [text]


def test_strings_are_strings_and_values_are_values() -> None:
    text = "<tool_call>weather\n<arg_key>city</arg_key><arg_value>12</arg_value>\n<arg_key>strict</arg_key>\n<arg_value>true</arg_value></tool_call>"
    assert read(parts_of(form("glm"), [text])) == [("weather", {"city": "12", "strict": True})]
    text = "<tool_call>\n<function=weather>\n<parameter=city>\n a\nb \n</parameter>\n<parameter=other>\nx y\n</parameter>\n</function>\n</tool_call>"
    assert read(parts_of(form("qwen coder"), [text])) == [("weather", {"city": " a\nb ", "other": "x y"})]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "a\\"</tool_call>\\\\"}}</tool_call>!'),
        ("glm", '<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a"</tool_call>\\</arg_value>\n</tool_call>!'),
    ],
)
def test_a_closing_mark_inside_a_value_closes_nothing(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(parts_of(form(name), pieces)) == [("weather", {"city": 'a"</tool_call>\\'}), "!"]
    cut = text[: text.index("</tool_call>") + len("</tool_call>")]
    for pieces in ([cut], list(cut)):
        (call,) = parts_of(form(name), pieces)  # which was begun
        assert isinstance(call, Call) and json.loads(call.arguments + '"}') == {"city": 'a"</tool_call>'}


def test_text_after_a_call_is_told() -> None:
    text = FORMS["hermes"][1] + "\n\nDone, all of it."
    assert read(parts_of(form("hermes"), text))[2:] == ["Done, all of it."]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", '<tool_call>{"arguments": {"city": "a"}, "name": "weather"}</tool_call>', [("weather", {"city": "a"})]),
        ("hermes", '<tool_call>{"name": "ping"}</tool_call>', [("ping", {})]),
        ("hermes", '<tool_call>{"name": "ping", "arguments": {}, "id": 7}</tool_call>', [("ping", {})]),
        ("hermes", '<tool_call>{"name": "ping", "arguments": {}}}</tool_call>', [("ping", {}), "}}"]),
        ("hermes", '<tool_call>{"name": "ping", "arguments": {}', [("ping", {})]),
        ("hermes", '<tool_call>{"name": ["ping"], "arguments": {}}</tool_call>', None),
        ("mistral", '[TOOL_CALLS] [{"name": "ping", "arguments": {}}, {"arguments": {}, "name": "ping"}]', [("ping", {})] * 2),
        ("mistral", '[TOOL_CALLS] [{"name": "ping", "arguments": {}, "id": 1}, {"name": "ping"}]', [("ping", {})] * 2),
        ("mistral", '[TOOL_CALLS] [{"name": "ping", "arguments": {}}] Done.', [("ping", {}), "Done."]),
        ("later mistral", '[TOOL_CALLS]ping[ARGS]{} and so on', [("ping", {}), "and so on"]),
        ("qwen coder", "<tool_call>\n<function=weather>\n<parameter=city>\n</parameter>\n</tool_call>", [("weather", {"city": ""})]),
        ("qwen coder", "<tool_call>\n<function=ping>\nwhat?\n</tool_call>", [("ping", {}), "what?\n"]),
        ("glm", "<tool_call>weather\n<arg_key>ci", [("weather", None)]),
        ("glm", "<tool_call>weathervane\n<arg_key>city</arg_key>\n<arg_value>a</arg_value>\n</tool_call>", None),
    ],
)  # fmt: skip
def test_odd_calls(name: str, text: str, expected: list[Any] | None) -> None:
    """Models write fields in another order, brackets too many or too few, and words where none belong."""
    found = parts_of(form(name), list(text))
    if expected == [("weather", None)]:
        assert found == [Call("weather", "{")]  # cut: the beginning of its arguments
    else:
        assert read(found) == ([text] if expected is None else expected)


def test_an_object_left_open_ends_with_its_call() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "a"</tool_call>!'
    for pieces in ([text], list(text)):
        assert parts_of(form("hermes"), pieces) == [Call("weather", '{"city": "a"'), "!"]


def test_a_template_that_shows_no_form_has_none() -> None:
    assert format_of("{% for tool in tools %}{{ tool }}{% endfor %}") is None


# ---------------------------------------------------------------- grammars


def any_text(grammars: Grammars, tokens: TokenBytes, lark: str, seed: int) -> str:
    grammar = Grammar(kind="lark", text=lark, param="tools")
    said = babble(grammars, grammar, seed, num_ids=len(tokens.pieces), stops=[0])
    return b"".join(tokens.pieces[one] for one in said).decode("utf-8", errors="replace")


def fits(call: Call) -> bool:
    arguments = json.loads(call.arguments)
    if call.name == "ping":
        return bool(arguments == {})
    return (
        isinstance(arguments["city"], str) and len(arguments["city"]) <= 6
        and arguments.get("days", 1) in range(1, 15) and arguments.get("unit", "C") in ("C", "F")
        and arguments.get("at", {"x": 1}) in ({"x": 1}, {"x": 2}) and arguments.get("strict", True) in (True, False)
        and arguments.get("mode", "a<b") == "a<b" and arguments.get("note") in ("x", None)
        and arguments.keys() <= SCHEMAS["weather"]["properties"].keys()
    )  # fmt: skip


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_what_the_grammar_allows_is_read_and_fits(name: str, marks_are_tokens: bool) -> None:
    """Any text at all that the grammar lets through, marks as special tokens or as text."""
    format_ = form(name)
    marks = [mark.encode() for mark in format_.marks] if marks_are_tokens else []
    pieces = (b"</s>", *marks, *(bytes([byte]) for byte in range(32, 127)), b"\n", b'", "')
    special = {mark: place for place, mark in enumerate(format_.marks, 1)} if marks_are_tokens else {}
    tokens = TokenBytes(pieces=pieces, special_ids=frozenset({0, *special.values()}))
    if not marks_are_tokens:  # of bytes past ASCII too
        tokens = TokenBytes(pieces=(*pieces, *(bytes([byte]) for byte in range(128, 256))), special_ids=frozenset({0}))
    grammars = Grammars(lambda: tokens, len(tokens.pieces), (0,))
    lengths = set()
    for many in (False, True):
        lark = format_.lark(SCHEMAS, _literal(special), many=many)
        for seed in range(6):
            text = any_text(grammars, tokens, lark, seed)
            parts = parts_of(format_, [text])
            assert parts and all(isinstance(part, Call) and fits(part) for part in parts), text
            assert many or len(parts) == 1
            lengths.add(len(parts))
    assert len(lengths) > 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}},
        {"type": "object", "properties": {"a": {}}, "minProperties": 1},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "object", "properties": {"<a>": {}}},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": "1}/ x"}}},
    ],
)
def test_what_tags_cannot_hold_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="cannot be enforced") as caught:
        form("glm").lark({"f": schema}, json.dumps, many=True)
    assert caught.value.param == "tools"


# ---------------------------------------------------------------- requests

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Look outside.", "parameters": SCHEMAS["weather"], "strict": True},
}
PING: dict[str, Any] = {"type": "function", "function": {"name": "ping"}}
TEMPLATE = (
    "{% if tools %}TOOLS{% for tool in tools %} {{ tool | tojson }}{% endfor %}"
    '<tool_call>{"name": n, "arguments": a}</tool_call>\n{% endif %}'
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "CALL {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "{{ ' FOR ' + m.tool_call_id if m.tool_call_id else '' }};{% endfor %}"
)
SAID = 'Well. <tool_call>{"name": "ping", "arguments": {}}</tool_call>'


@pytest.fixture(scope="session")
def with_tools(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tools"), template=TEMPLATE))


def ask(serve: Any, tokens: Tokenizer, **body: Any) -> tuple[Any, Any]:
    """The response and what the engine was handed."""

    async def run() -> tuple[Any, Any]:
        room = Ready(model="toy", vocab_size=512, max_context=2048, num_blocks=512, block_tokens=16, load_s=0.0)
        async with serve(ToyEngine(ready=room), tokens=tokens) as served:
            response = await served.chat(**body)
            return response, served.engine.submitted

    return asyncio.run(run())


def prompt_of(tokens: Tokenizer, submitted: Any) -> str:
    return tokens.decode(submitted[0].prompt_ids, skip_special=False)


def test_tools_are_shown_by_the_template(serve, with_tools: Tokenizer) -> None:
    response, submitted = ask(serve, with_tools, tools=[PING], max_tokens=1)
    assert response.status_code == 200
    shown = '{"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}, '
    assert prompt_of(with_tools, submitted).startswith("TOOLS " + shown)
    assert submitted[0].grammar is None
    for body in ({"tools": [PING], "tool_choice": "none"}, {"tools": []}, {"tools": [], "tool_choice": "auto"}):
        _, submitted = ask(serve, with_tools, max_tokens=1, **body)
        assert prompt_of(with_tools, submitted) == "user:hi;"


def test_tools_are_counted(serve, with_tools: Tokenizer) -> None:
    """/tokenize says how many tokens a chat with tools has."""

    async def run() -> int:
        async with serve(tokens=with_tools) as served:
            body = {"messages": [{"role": "user", "content": "hi"}], "tools": [PING]}
            count: int = (await served.http.post("/tokenize", json=body)).json()["count"]
            return count

    _, submitted = ask(serve, with_tools, tools=[PING], max_tokens=1)
    assert asyncio.run(run()) == len(submitted[0].prompt_ids)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_a_grammar(serve, with_tools: Tokenizer, choice: Any) -> None:
    body = {"tools": [PING, PING | {"function": {"name": "weather"}}], "tool_choice": choice, "max_tokens": 1}
    _, submitted = ask(serve, with_tools, **body)
    grammar = submitted[0].grammar
    assert grammar is not None and grammar.kind == "lark" and "weather" in grammar.text
    assert ("ping" in grammar.text) == (choice == "required") == ("call)*" in grammar.text)
    _, submitted = ask(serve, with_tools, **body, parallel_tool_calls=False)
    assert "call)*" not in submitted[0].grammar.text


def test_calls_and_their_results_are_shown(serve, with_tools: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant", "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "ping", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "pong"},
    ]  # fmt: skip
    _, submitted = ask(serve, with_tools, messages=messages, max_tokens=1)
    assert prompt_of(with_tools, submitted) == 'user:hi;assistant:CALL c1 ping {"a": 1};tool:pong FOR c1;'


def test_templates_may_want_arguments_as_text(serve, tmp_path: Path) -> None:
    template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '@' + c.function.arguments }}{% endfor %}.{% endfor %}"
    tokens = load_tokenizer(write_tokenizer(tmp_path, template=template))
    called = {"id": "c1", "type": "function", "function": {"name": "ping", "arguments": '{"a":  1}'}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [called]}]
    _, submitted = ask(serve, tokens, messages=messages, max_tokens=1)
    assert prompt_of(tokens, submitted) == '.@{"a":  1}.'


def test_an_answer_tells_its_calls(serve, with_tools: Tokenizer) -> None:
    """The toy engine repeats its prompt, so what stands there is what it says."""
    messages = [{"role": "user", "content": SAID}]
    count = len(with_tools.encode(f"user:{SAID};"))
    _, submitted = ask(serve, with_tools, messages=messages, tools=[PING], tool_choice="none", max_tokens=1)
    assert len(submitted[0].prompt_ids) == count
    prompt = len(ask(serve, with_tools, messages=messages, tools=[PING], max_tokens=1)[1][0].prompt_ids)
    response, _ = ask(serve, with_tools, messages=messages, tools=[PING], max_tokens=prompt - 1, seed=0)
    choice = response.json()["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [{"name": "ping", "arguments": "{}"}]
    assert re.fullmatch("call_[a-zA-Z0-9]{24}", calls[0]["id"]) and calls[0]["type"] == "function"
    assert choice["message"]["content"].startswith("TOOLS") and choice["message"]["content"].endswith("user:Well. ")
    assert choice["finish_reason"] == "length"  # the toy was cut; what it called it called


def test_a_stream_tells_the_same(serve, with_tools: Tokenizer) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": SAID}],
        "tools": [PING],
        "max_tokens": 600,
        "logprobs": True,
    }
    whole = ask(serve, with_tools, **body)[0].json()["choices"][0]
    response, _ = ask(serve, with_tools, **body, stream=True)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["message"]["content"]
    told = [call for delta in deltas for call in delta.get("tool_calls", [])]
    calls = [call["function"].copy() for call in told if "id" in call]  # each begins with its name
    assert all(call["type"] == "function" and call["function"]["arguments"] == "" for call in told if "id" in call)
    for call in told:
        if "id" not in call:
            assert call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"}
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert calls == [call["function"] for call in whole["message"]["tool_calls"]]
    assert len(told) > len(calls) > 0 and '"name": "ping", "arguments"' not in whole["message"]["content"]
    told = [one for event in events for one in (event["choices"][0]["logprobs"] or {}).get("content", [])]
    assert told == whole["logprobs"]["content"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        ({"tools": [{"type": "retrieval", "function": {"name": "a"}}]}, "tools[0].type", "'function'"),
        ({"tools": [PING, PING]}, "tools", "same name"),
        ({"tools": [PING] * 129}, "tools", "length"),
        ({"tools": [PING | {"function": {"name": "a", "parameters": {"type": "string"}}}]}, "tools", "of an object"),
        ({"tools": [PING | {"function": {"name": "a", "parameters": {"required": [[]]}}}]}, "tools", "list of names"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [PING], "tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tools": [PING], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tools": [PING], "response_format": {"type": "json_object"}}, "response_format", "both have a form"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "role 'tool'"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", "role 'tool'"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls", "only the assistant"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]}
                ]
            },
            "messages", "no JSON object",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    serve, with_tools: Tokenizer, body: dict[str, Any], param: str, says: str
) -> None:
    response, submitted = ask(serve, with_tools, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and submitted == []
    assert error["param"] == param and says in error["message"], error


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML, "knows no tools"),
        ("{% for t in tools %}{% endfor %}{{ messages }}", "is not known"),
        (None, "no chat template"),
    ],
)
def test_a_template_without_tools_says_so(serve, tmp_path: Path, template: str | None, says: str) -> None:
    tokens = load_tokenizer(write_tokenizer(tmp_path, template=template))
    response, _ = ask(serve, tokens, tools=[PING])
    assert response.status_code == 400 and says in response.json()["error"]["message"]
