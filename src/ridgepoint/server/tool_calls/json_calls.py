"""Forms that write a call's arguments as JSON, which is therefore handed on as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ridgepoint.server.tool_calls.form import Call, Literal, Schemas, ToolFormat, json_of, one_of


class JsonCalls(ToolFormat):
    """`<tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>`, one region for each: Hermes, Qwen."""

    begin, end = "<tool_call>", "</tool_call>"
    marks = (begin, end)

    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        return _calls_in([_parsed(region)], schemas)

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        opening, closing, separator = literal(self.begin + "\n"), literal("\n" + self.end), literal("\n")
        call = f"{opening} body {closing}"
        again = f" ({separator} call)*" if many else ""
        return f"start: call{again}\ncall: {call}\n" + _json_bodies(schemas, literal)


class JsonList(ToolFormat):
    """`[TOOL_CALLS] [{"name": ..., "arguments": ...}, ...]`: Mistral, Granite; Phi closes it."""

    def __init__(self, begin: str, end: str | None, gap: str, id_chars: int) -> None:
        self.begin, self.end, self._gap, self.id_chars = begin, end, gap, id_chars
        self.marks = (begin,) if end is None else (begin, end)

    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        found = _parsed(region)
        return _calls_in(found, schemas) if isinstance(found, list) and found else None

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
        self.marks = tuple(
            dict.fromkeys(
                re.findall(r"<｜[^｜]*｜>|\[[A-Z_]+\]", begin + before + between + after + (end or "") + separator)
            )
        )

    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        calls: list[Call] = []
        rest = region.strip()
        while rest:
            name, mark, rest = rest.removeprefix(self._before).partition(self._between)
            try:
                arguments, stop = json.JSONDecoder().raw_decode(rest := rest.lstrip())
            except (ValueError, RecursionError):
                return None
            text, rest = rest[:stop], rest[stop:].lstrip().removeprefix(self._after.lstrip())
            rest = rest.lstrip().removeprefix(self._separator.strip()).lstrip()
            if not mark or name not in schemas or not isinstance(arguments, dict):
                return None
            calls.append(Call(name, text))
        return calls or None

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        again = f" ({literal(self._separator)} body)*" if many else ""
        close = f" {literal(self.end)}" if self.end else ""
        rules = f"start: {literal(self.begin)} body{again}{close}\nbody: {one_of('body', schemas)}\n"
        for place, (name, schema) in enumerate(schemas.items()):
            head = literal(self._before + name + self._between)
            rules += f"body_{place}: {head} {json_of(schema)} {literal(self._after)}\n"
        return rules


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


def _calls_in(found: Sequence[Any], schemas: Schemas) -> list[Call] | None:
    calls: list[Call] = []
    for one in found:
        arguments = one.get("arguments", one.get("parameters", {})) if isinstance(one, dict) else None
        if not isinstance(arguments, dict) or one.get("name") not in schemas:
            return None
        calls.append(Call(one["name"], json.dumps(arguments, ensure_ascii=False)))
    return calls
