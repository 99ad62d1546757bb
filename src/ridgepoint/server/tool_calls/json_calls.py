"""Forms that write a call's arguments as JSON, which is therefore handed on as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import Any

from ridgepoint.server.parts import Arguments, Call, CallBegun
from ridgepoint.server.tool_calls.form import Literal, Schemas, ToolFormat, json_of, one_of
from ridgepoint.server.tool_calls.incoming import Incoming, Search, json_object

# The usual beginning of a call, up to its arguments. One whose fields come in another order is read when it is whole.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class JsonCalls(ToolFormat):
    """`<tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>`, one region for each: Hermes, Qwen."""

    begin, end = "<tool_call>", "</tool_call>"
    marks = (begin, end)

    def region(self, text: Incoming, schemas: Schemas) -> Search:
        name = yield from _begun(self, text, _HEAD, schemas)
        if name is None:
            region, mark = yield from self.rest(text)
            return (yield from _whole(_calls_in([_parsed(region)], schemas), self.begin + region + mark))
        yield CallBegun(name)
        yield from json_object(text, self.end)
        rest, _ = yield from self.rest(text)
        if rest.strip() not in ("", "}") and _parsed('{"": 0' + rest) is None:  # fields may follow the arguments
            yield rest
        return True

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        opening, closing, separator = literal(self.begin + "\n"), literal("\n" + self.end), literal("\n")
        call = f"{opening} body {closing}"
        again = f" ({separator} call)*" if many else ""
        return f"start: call{again}\ncall: {call}\n" + _json_bodies(schemas, literal)


class JsonList(ToolFormat):
    """`[TOOL_CALLS] [{"name": ..., "arguments": ...}, ...]`: Mistral, Granite; Phi closes it."""

    _first = re.compile(r"\s*\[" + _HEAD.pattern)

    def __init__(self, begin: str, end: str | None, gap: str, id_chars: int) -> None:
        self.begin, self.end, self._gap, self.id_chars = begin, end, gap, id_chars
        self.marks = (begin,) if end is None else (begin, end)

    def region(self, text: Incoming, schemas: Schemas) -> Search:
        name = yield from _begun(self, text, self._first, schemas)
        if name is None:
            region, mark = yield from self.rest(text)
            return (yield from _whole(_listed(region, schemas), self.begin + region + mark))
        while name is not None:
            yield CallBegun(name)
            yield from json_object(text, self.end)
            yield from text.strip()
            if (yield from text.take_word("}")) is None:  # more fields, or no JSON
                rest, _ = yield from self.rest(text)
                return (yield from _whole(_listed('[{"": 0' + rest, schemas, start=1), rest)) or True
            yield from text.strip()
            if (yield from text.take_word(",")) is None:
                break
            name = yield from _begun(self, text, _HEAD, schemas)
        else:
            rest, _ = yield from self.rest(text)
            return (yield from _whole(_listed("[" + rest, schemas), rest)) or True
        yield from text.take_word("]")
        yield from text.strip()
        if self.end is not None:
            yield from text.take_word(self.end)
        return True

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        again = f" ({literal(', ')} body)*" if many else ""
        close = literal("]" + (self.end or ""))
        return f"start: {literal(self.begin + self._gap + '[')} body{again} {close}\n" + _json_bodies(schemas, literal)


class NamedJson(ToolFormat):
    """The name, a mark, and the arguments as JSON: `[TOOL_CALLS]name[ARGS]{...}` of later Mistrals, and DeepSeek's, which
    close each call and all of them."""

    def __init__(
        self, begin: str, end: str | None, *, before: str, between: str, after: str, separator: str, id_chars: int = 24
    ) -> None:
        self.begin, self.end, self.id_chars = begin, end, id_chars
        self._before, self._between, self._after, self._separator = before, between, after, separator
        self._head = re.compile(rf"\s*(?:{re.escape(before)})?(?P<name>[\w.-]+){re.escape(between)}\s*(?=\{{)")
        self.marks = tuple(
            dict.fromkeys(
                re.findall(r"<｜[^｜]*｜>|\[[A-Z_]+\]", begin + before + between + after + (end or "") + separator)
            )
        )

    def region(self, text: Incoming, schemas: Schemas) -> Search:
        name = yield from _begun(self, text, self._head, schemas)
        if name is None:
            region, mark = yield from self.rest(text)
            yield self.begin + region + mark
            return False
        after = self._after.strip()
        while name is not None:
            yield CallBegun(name)
            yield from json_object(text, after or self.end)
            yield from text.strip()
            if after:
                yield from text.take_word(after)
                yield from text.strip()
            if self.end is None or (yield from text.take_word(self.end)) is not None:
                return True  # where nothing ends calls, each opens its own region
            name = yield from _begun(self, text, self._head, schemas)
        rest, _ = yield from self.rest(text)
        if rest:
            yield rest
        return True

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        again = f" ({literal(self._separator)} body)*" if many else ""
        close = f" {literal(self.end)}" if self.end else ""
        rules = f"start: {literal(self.begin)} body{again}{close}\nbody: {one_of('body', schemas)}\n"
        for place, (name, schema) in enumerate(schemas.items()):
            head = literal(self._before + name + self._between)
            rules += f"body_{place}: {head} {json_of(schema)} {literal(self._after)}\n"
        return rules


def _begun(
    format_: ToolFormat, text: Incoming, head: re.Pattern[str], schemas: Schemas
) -> Generator[None, None, str | None]:
    """The tool whose arguments begin next; None once the region has ended without."""
    while True:
        found = head.match(text.held)
        if found is not None and found["name"] in schemas:
            text.take(found.end())
            return found["name"]
        if format_.ended(text) is not None:
            return None
        yield None


def _whole(calls: list[Call] | None, text: str) -> Search:
    """Calls that could be read only when all of them were there, or the text that they were not."""
    if calls is None:
        if text:
            yield text
        return False
    for call in calls:
        yield CallBegun(call.name)
        yield Arguments(call.arguments)
    return True


def _json_bodies(schemas: Schemas, literal: Literal) -> str:
    rules = f"body: {one_of('body', schemas)}\n"
    for place, (name, schema) in enumerate(schemas.items()):
        head = literal('{"name": ' + json.dumps(name) + ', "arguments": ')
        rules += f"body_{place}: {head} {json_of(schema)} {literal('}')}\n"
    return rules


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _listed(text: str, schemas: Schemas, start: int = 0) -> list[Call] | None:
    found = _parsed(text)
    return _calls_in(found[start:], schemas) if isinstance(found, list) and found else None


def _calls_in(found: Sequence[Any], schemas: Schemas) -> list[Call] | None:
    calls: list[Call] = []
    for one in found:
        one = one if isinstance(one, dict) else {}
        name, arguments = one.get("name"), one.get("arguments", one.get("parameters", {}))
        if not isinstance(name, str) or name not in schemas or not isinstance(arguments, dict):
            return None
        calls.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
    return calls
