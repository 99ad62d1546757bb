"""Forms that write each argument between tags of its own, strings without quotes, so reading one takes the tool's schema.

What cannot be told from such text, or enforced in it, is refused where a call must be made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ridgepoint.errors import RequestError
from ridgepoint.server.tool_calls.form import Call, Literal, Schemas, ToolFormat, json_of, one_of

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
