"""Forms that write each argument between tags of its own, strings without quotes, so reading one takes the tool's schema.

What cannot be told from such text, or enforced in it, is refused where a call must be made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from ridgepoint.errors import RequestError
from ridgepoint.server.parts import Arguments, CallBegun
from ridgepoint.server.tool_calls.form import Literal, Schemas, ToolFormat, json_of, one_of
from ridgepoint.server.tool_calls.incoming import Incoming, Reading, Search, until

_ROOT_KEYS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description"}
_NAME = re.compile(r'[^<>"\n]+')  # what can be told from the tag around it
_MAX_TAG_CHARS = 256  # of one that was cut
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
        self._heads, self._keys = re.compile(_loosely(head)), re.compile(_loosely(key))
        self._key_begin, self._value_mark = key.partition("NAME")[0], value_end.rstrip()
        self._tags = (self._key_begin, tail.strip(), end)

    def region(self, text: Incoming, schemas: Schemas) -> Search:
        called = False
        while (name := (yield from self._begun(text, schemas))) is not None:
            called = True
            yield CallBegun(name)
            yield Arguments("{")
            yield from self._values(text, schemas[name])
            if (yield from self._closed(text)):
                yield Arguments("}")
            if not self._several:
                break
        rest, mark = yield from self.rest(text)
        if not called:
            yield self.begin + rest + mark
        elif rest.strip() and (mark or not self._is_cut_tag(rest)):
            yield rest
        return called

    def _begun(self, text: Incoming, schemas: Schemas) -> Generator[None, None, str | None]:
        """The tool that is called next; None once the region has ended without."""
        while True:
            head = self._heads.match(text.held)
            if head is not None and head["name"].strip() in schemas and head.end() < len(text.held):
                text.take(head.end())
                return head["name"].strip()
            if self.ended(text) is not None:
                return None
            yield None

    def _values(self, text: Incoming, schema: dict[str, Any]) -> Reading:
        """The fields of one call, as JSON; what follows them is held."""
        separator = ""
        while (field := (yield from self._field(text))) is not None:
            wanted = schema.get("properties", {}).get(field)
            opening = separator + json.dumps(field, ensure_ascii=False) + ": "
            separator = ", "
            if self._key.endswith("\n"):  # which is no part of the value, but may be one of the mark behind it
                while self._value_mark.startswith(text.held) and not text.final:
                    yield None
                if not text.held.startswith(self._value_mark) and text.held.startswith("\n"):
                    text.take(1)
            if _is_text(wanted):
                yield Arguments(opening + '"')
                if (yield from until(text, self._value_mark, lambda said: Arguments(_escaped(said)))):
                    yield Arguments('"')
            else:
                yield from self._value(text, opening, wanted)

    def _value(self, text: Incoming, opening: str, wanted: Any) -> Reading:
        """A value that is told when it is whole; one that was cut is told as it is."""
        while self._value_mark not in text.held and not text.final:
            yield None
        value, mark, _ = text.held.partition(self._value_mark)
        text.take(len(value) + len(mark))
        if mark:
            value = json.dumps(_value_of(value, wanted), ensure_ascii=False)
        yield Arguments(opening + value)

    def _field(self, text: Incoming) -> Generator[None, None, str | None]:
        """The name in the tag that opens the next value, which is taken; None where another tag or none comes."""
        yield from text.strip()
        while True:
            key = self._keys.match(text.held)
            if key is not None:
                text.take(key.end())
                return key["name"].strip()
            may_come = self._key_begin.startswith(text.held) or text.held.startswith(self._key_begin)
            if not may_come or self.ended(text) is not None:
                return None
            yield None

    def _closed(self, text: Incoming) -> Generator[None, None, bool]:
        """Whether a call is over, and not cut. Its tag is taken, where it has one."""
        tail = self._tail.strip()
        if tail and (yield from text.take_word(tail)) is not None:
            return True
        while (ended := self.ended(text)) is None:
            yield None
        return bool(ended[1]) or not self._is_cut_tag(ended[0])

    def _is_cut_tag(self, text: str) -> bool:
        """Whether text is what the end of an output leaves of a tag, or nothing."""
        text = text.strip()
        is_key = text.startswith(self._key_begin) and "\n" not in text and len(text) <= _MAX_TAG_CHARS
        return is_key or any(tag.startswith(text) for tag in self._tags)

    def is_open(self, region: str) -> bool:
        return region.rfind(self._key.partition("NAME")[0]) > region.rfind(self._value_end.strip())

    def lark(self, schemas: Schemas, literal: Literal, *, many: bool) -> str:
        opening, closing = literal(self.begin + ("\n" if self._several else "")), literal(self.end or "")
        if self._several:
            rules = f"start: {opening} body{'+' if many else ''} {closing}\n"
        else:
            separator = literal("\n")
            again = f" ({separator} call)*" if many else ""
            rules = f"start: call{again}\ncall: {opening} body {closing}\n"
        rules += f"body: {one_of('body', schemas)}\n"
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
                value = f"{json_of(schema_of_value)} {literal(self._value_end)}"
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
    return rf"\s*{before}(?P<name>{_NAME.pattern}){after}"


def _escaped(text: str) -> str:
    """Text as it stands in a string of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


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
