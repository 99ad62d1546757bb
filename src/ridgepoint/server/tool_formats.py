"""How families of models write the calls of tools: what a template's text tells, text to calls, and a grammar of them.

A format knows the marks around calls and what stands between them. Formats with JSON hold the arguments as they are; tagged
formats write each argument by itself, strings without quotes, so reading them takes the tool's schema. Knows no HTTP and no
tokenizer. Invariant: what a format's grammar allows, the format reads.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ridgepoint.errors import RequestError
from ridgepoint.server.structure import BLANKS

Schemas = Mapping[str, dict[str, Any]]  # of the arguments, by the name of the tool; each one of an object
Literal = Callable[[str], str]  # text to Lark that matches it, marks that are tokens of their own included


@dataclass(frozen=True)
class Call:
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolFormat(ABC):
    """`begin` opens a region of calls, which `end` closes (None: the end of the output does). `marks` are all texts that a
    tokenizer may have as special tokens."""

    begin: str
    end: str | None
    marks: tuple[str, ...]
    id_chars = 24

    @abstractmethod
    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        """The calls in a region; None where it holds anything else."""

    def is_open(self, region: str) -> bool:
        """Whether what follows is inside a value still, where a closing mark is text: here, in a string of JSON."""
        return re.sub(r"\\.", "", region, flags=re.DOTALL).count('"') % 2 == 1

    @abstractmethod
    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        """A grammar of one call of one of the tools, or of several."""


# ---------------------------------------------------------------- JSON


class JsonCalls(ToolFormat):
    """`<tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>`, one region for each: Hermes, Qwen."""

    begin, end = "<tool_call>", "</tool_call>"
    marks = (begin, end)

    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        return _calls_in([_parsed(region)], schemas)

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        call = f"{literal(self.begin + chr(10))} body {literal(chr(10) + str(self.end))}"
        again = f" ({literal(chr(10))} call)*" if many else ""
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

    id_chars = 24

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
                arguments, stop = json.JSONDecoder().raw_decode(rest)
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
        rules = f"start: {literal(self.begin)} body{again}{close}\nbody: {_one_of('body', schemas)}\n"
        for place, (name, schema) in enumerate(schemas.items()):
            head = literal(self._before + name + self._between)
            rules += f"body_{place}: {head} {_json(schema)} {literal(self._after)}\n"
        return rules


def _json_bodies(schemas: Schemas, literal: Literal) -> str:
    rules = f"body: {_one_of('body', schemas)}\n"
    for place, (name, schema) in enumerate(schemas.items()):
        head = literal('{"name": ' + json.dumps(name) + ', "arguments": ')
        rules += f"body_{place}: {head} {_json(schema)} {literal('}')}\n"
    return rules


def _one_of(rule: str, schemas: Schemas) -> str:
    return " | ".join(f"{rule}_{place}" for place in range(len(schemas)))


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**BLANKS, **schema})


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


# ---------------------------------------------------------------- tags

_ROOT_KEYS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description"}
_NAME = re.compile(r'[^<>"\n]+')  # what can be told from the tag around it
_STRING_KEYS = {"type", "minLength", "maxLength", "title", "description", "default", "examples"}


class TaggedCalls(ToolFormat):
    """Each argument between tags. `region` calls stand in one region where it says `several`, else each in its own."""

    def __init__(
        self,
        begin: str,
        end: str,
        *,
        head: str,
        tail: str,
        key: str,
        value_end: str,
        several: bool,
        marks: tuple[str, ...],
    ) -> None:
        """`head` and `key` hold NAME where the name stands."""
        self.begin, self.end, self.marks = begin, end, marks
        self._head, self._tail, self._key, self._value_end, self._several = head, tail, key, value_end, several
        self._heads = re.compile(_loosely(head))
        self._keys = re.compile(_loosely(key) + "(?P<value>.*?)" + re.escape(value_end.rstrip()), re.DOTALL)

    def read(self, region: str, schemas: Schemas) -> list[Call] | None:
        calls: list[Call] = []
        rest = region.strip()
        while rest:
            head = self._heads.match(rest)
            if head is None or head["name"].strip() not in schemas:
                return None
            name, rest = head["name"].strip(), rest[head.end() :].lstrip()
            arguments: dict[str, Any] = {}
            while (found := self._keys.match(rest)) is not None:
                key = found["name"].strip()
                arguments[key] = _value_of(found["value"], schemas[name].get("properties", {}).get(key))
                rest = rest[found.end() :].lstrip()
            tail = self._tail.strip()
            if not rest.startswith(tail):
                return None
            rest = rest[len(tail) :].lstrip()
            calls.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
        return calls or None

    def is_open(self, region: str) -> bool:
        return region.rfind(self._key.partition("NAME")[0]) > region.rfind(self._value_end.strip())

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        opening, closing = literal(self.begin + ("\n" if self._several else "")), literal(self.end or "")
        if self._several:
            rules = f"start: {opening} body{'+' if many else ''} {closing}\n"
        else:
            again = f" ({literal(chr(10))} call)*" if many else ""
            rules = f"start: call{again}\ncall: {opening} body {closing}\n"
        rules += f"body: {_one_of('body', schemas)}\n"
        for place, (name, schema) in enumerate(schemas.items()):
            rules += "\n".join(self._body(place, name, schema, literal)) + "\n"
        return rules

    def _body(self, place: int, name: str, schema: dict[str, Any], literal: Literal) -> Iterator[str]:
        required = set(schema.get("required", ()))
        fields = {field: wanted for field, wanted in schema.get("properties", {}).items() if wanted is not False}
        odd = {field for field in fields if not _NAME.fullmatch(field)}
        if unknown := (schema.keys() - _ROOT_KEYS) | (required - fields.keys()) | odd:
            raise _unenforceable(name, sorted(unknown)[0])
        parts = [f"value_{place}_{number}" + ("" if field in required else "?") for number, field in enumerate(fields)]
        yield f"body_{place}: " + " ".join([literal(self._head.replace("NAME", name)), *parts, literal(self._tail)])
        shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        for number, (field, wanted) in enumerate(fields.items()):
            opening = literal(self._key.replace("NAME", field))
            rule = f"value_{place}_{number}"
            if choices := _choices(wanted):
                if any(self._value_end.strip() in one for one in choices):
                    raise _unenforceable(f"{name}.{field}", self._value_end.strip())
                value = "(" + " | ".join(literal(one) for one in choices) + ") " + literal(self._value_end)
            elif not _is_text(wanted):
                schema_of_value = shared | wanted if isinstance(wanted, dict) else {}
                value = f"{_json(schema_of_value)} {literal(self._value_end)}"
            else:
                if unknown := wanted.keys() - _STRING_KEYS:
                    raise _unenforceable(f"{name}.{field}", sorted(unknown)[0])
                value = f"raw_{rule}"
                yield self._raw(value, wanted, f"{name}.{field}", literal)
            yield f"{rule}: {opening} {value}"

    def _raw(self, rule: str, wanted: dict[str, Any], name: str, literal: Literal) -> str:
        """Text up to the closing tag, which it therefore cannot hold."""
        least, most = wanted.get("minLength", 0), wanted.get("maxLength", "")
        for key, bound in (("minLength", least), ("maxLength", most)):
            if bound != "" and not (type(bound) is int and bound >= 0):
                raise _unenforceable(name, key)
        text = f"/(.|\\n){{{least},{most}}}/"
        if literal(self._value_end).startswith("<["):  # a token of its own: text cannot hold it anyway
            return f"{rule}: {text} {literal(self._value_end)}"
        return f"{rule}[suffix={json.dumps(self._value_end)}]: {text}"


def _loosely(pattern: str) -> str:
    """A regular expression for text with NAME in it; blanks around tags may differ."""
    before, after = (re.escape(part.strip()).replace("\\\n", r"\s*") for part in pattern.split("NAME"))
    return f"{before}(?P<name>{_NAME.pattern}){after}" + (r"\n?" if pattern.endswith("\n") else "")


def _choices(wanted: Any) -> list[str]:
    """The texts that a schema leaves, if it leaves a few and nothing else."""
    given = wanted.get("enum", [wanted.get("const")]) if isinstance(wanted, dict) else None
    return given if isinstance(given, list) and all(isinstance(one, str) for one in given) else []


def _is_text(wanted: Any) -> bool:
    """Whether a value of this schema is written without quotes."""
    if not isinstance(wanted, dict):
        return False
    return bool(_choices(wanted)) or (wanted.get("type") == "string" and not {"enum", "const"} & wanted.keys())


def _value_of(text: str, wanted: Any) -> Any:
    if _is_text(wanted):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a string after all


def _unenforceable(name: str, key: str) -> RequestError:
    return RequestError(
        f"the parameters of {name}: {key!r} cannot be enforced in the form in which this model writes calls",
        param="tools", code="invalid_value", hint="leave it out, or use tool_choice 'auto'",
    )  # fmt: skip


# ---------------------------------------------------------------- which one


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template's text shows."""
    if "minimax:tool_call" in template:
        return TaggedCalls(
            "<minimax:tool_call>", "</minimax:tool_call>", head='<invoke name="NAME">\n', tail="</invoke>\n",
            key='<parameter name="NAME">', value_end="</parameter>\n", several=True,
            marks=("<minimax:tool_call>", "</minimax:tool_call>"),
        )  # fmt: skip
    if "<arg_key>" in template:
        return TaggedCalls(
            "<tool_call>", "</tool_call>", head="NAME\n", tail="", key="<arg_key>NAME</arg_key>\n<arg_value>",
            value_end="</arg_value>\n", several=False,
            marks=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        )  # fmt: skip
    if "<tool_call>" in template and "<function=" in template:
        return TaggedCalls(
            "<tool_call>", "</tool_call>", head="\n<function=NAME>\n", tail="</function>\n", key="<parameter=NAME>\n",
            value_end="\n</parameter>\n", several=False, marks=("<tool_call>", "</tool_call>"),
        )  # fmt: skip
    if "<tool_call>" in template and '"arguments"' in template.replace("\\", ""):
        return JsonCalls()
    if "<｜tool▁calls▁begin｜>" in template:
        fenced = "```json" in template
        return NamedJson(
            "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
            before="<｜tool▁call▁begin｜>" + ("function<｜tool▁sep｜>" if fenced else ""),
            between="\n```json\n" if fenced else "<｜tool▁sep｜>",
            after=("\n```" if fenced else "") + "<｜tool▁call▁end｜>", separator="\n" if fenced else "",
        )  # fmt: skip
    if "[TOOL_CALLS]" in template and "[ARGS]" in template:
        return NamedJson(
            "[TOOL_CALLS]", None, before="", between="[ARGS]", after="", separator="[TOOL_CALLS]", id_chars=9
        )
    if "[TOOL_CALLS]" in template:
        return JsonList("[TOOL_CALLS]", None, " ", 9)
    if "<|tool_call|>" in template:
        return JsonList("<|tool_call|>", "<|/tool_call|>" if "<|/tool_call|>" in template else None, "", 24)
    return None
