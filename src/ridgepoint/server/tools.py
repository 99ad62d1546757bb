"""What a chat request says of tools: which the model is shown, whether it must call one, and the grammar where it must.

Decides what `tool_choice` means. The form of calls is the model's (`server.tool_calls`), told by its chat template.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ridgepoint.engine.grammar import MAX_SCHEMA_CHARS
from ridgepoint.engine.protocol import Grammar
from ridgepoint.engine.tokenizer import Tokenizer
from ridgepoint.errors import RequestError
from ridgepoint.server.harmony.grammar import call_lark
from ridgepoint.server.harmony.marks import Marks
from ridgepoint.server.harmony.reader import Place
from ridgepoint.server.schema import ChatRequest, NamedTool, Tool
from ridgepoint.server.tool_calls.form import Literal, Schemas, ToolFormat
from ridgepoint.server.tool_calls.known import format_of
from ridgepoint.server.tool_calls.stream import ToolStream

_ID_CHARS = string.ascii_letters + string.digits


@dataclass(frozen=True, kw_only=True)
class Calling:
    """Tools that may be called, and how. `shown` is what the template sees of them; `shown_ids` are special tokens that mark
    calls, and so are text here. `must` are those of which one must be called. Without a `format` the model writes harmony."""

    format: ToolFormat | None
    schemas: Schemas
    must: Schemas | None
    shown: list[dict[str, Any]]
    special: Mapping[str, int]
    single: bool

    @property
    def shown_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    def stream(self) -> ToolStream | None:
        return None if self.format is None else ToolStream(self.format, self.schemas, single=self.single)

    def new_id(self) -> str:
        """Some templates take ids of a certain length alone."""
        num_chars = 24 if self.format is None else self.format.id_chars
        name = "".join(secrets.choice(_ID_CHARS) for _ in range(num_chars))
        return name if num_chars < 10 else "call_" + name

    def grammar(self, marks: Marks | None = None, place: Place = "header") -> Grammar | None:
        """Of an answer that must call a tool. `place` is where the prompt of one in harmony ends."""
        if self.must is None:
            return None
        try:
            if self.format is not None:
                text = self.format.lark(self.must, _literal(self.special), many=not self.single)
            else:
                assert marks is not None
                text = call_lark(marks, place, self.must)
        except RecursionError as error:
            raise _refused("the parameters of a tool are nested too deeply", "tools") from error
        if len(text) > MAX_SCHEMA_CHARS:
            raise _refused(f"{len(text)} characters of tools: at most {MAX_SCHEMA_CHARS} can be enforced", "tools")
        return Grammar(kind="lark", text=text, param="tools")


def calling_of(request: ChatRequest, tokenizer: Tokenizer, marks: Marks | None) -> Calling | None:
    """None where no tool may be called: then the model is shown none."""
    tools, choice = request.tools or [], request.tool_choice
    names = [tool.function.name for tool in tools]
    wanted = choice.function.name if isinstance(choice, NamedTool) else None
    must_call = choice == "required" or wanted is not None
    if wanted is not None and wanted not in names:
        raise _refused(f"tool_choice names {wanted!r}, which is not among the tools", "tool_choice")
    if must_call and not tools:
        raise _refused("tool_choice 'required' needs tools", "tool_choice")
    if len(set(names)) < len(names):
        raise _refused("two tools have the same name", "tools")
    schemas = {tool.function.name: _schema_of(tool) for tool in tools}
    if not tools or choice == "none":
        return None
    must = None
    if must_call:
        must = schemas if wanted is None else {wanted: schemas[wanted]}
    format_ = _format_of(tokenizer, marks)
    return Calling(
        format=format_, schemas=schemas, must=must, shown=shown(tools, marks),
        special={} if format_ is None else tokenizer.special_ids_of(format_.marks),
        single=request.parallel_tool_calls is False or wanted is not None,
    )  # fmt: skip


def _refused(message: str, param: str) -> RequestError:
    return RequestError(message, param=param, code="invalid_value")


def _schema_of(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if parameters.get("type", "object") != "object" or not isinstance(properties, dict):
        raise _refused(f"the parameters of {tool.function.name!r} must be the schema of an object", "tools")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _refused(f"the parameters of {tool.function.name!r}: 'required' must be a list of names", "tools")
    return {"type": "object", **parameters}


def shown(tools: Sequence[Tool], marks: Marks | None) -> list[dict[str, Any]]:
    """What a template sees of them."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        text = tool.function.description
        if text is None and marks is not None:
            text = ""  # gpt-oss's template puts it behind other text
        description = {} if text is None else {"description": text}
        function = {"name": tool.function.name, **description, "parameters": _schema_of(tool)}
        found.append({"type": "function", "function": function})
    return found


def _format_of(tokenizer: Tokenizer, marks: Marks | None) -> ToolFormat | None:
    template = tokenizer.chat_template
    if template is None:
        raise RequestError("this model has no chat template", param="messages", code="no_chat_template")
    if "tools" not in template.variables:
        raise _refused("this model's chat template knows no tools", "tools")
    format_ = None if marks is not None else format_of(template.source)
    if format_ is None and marks is None:
        raise _refused("the form in which this model writes calls is not known: its chat template shows none", "tools")
    return format_


def _literal(special: Mapping[str, int]) -> Literal:
    """Text to Lark: a special token is no text to a grammar, and is named by its id."""

    def literal(text: str) -> str:
        parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
        return " ".join(f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part)

    return literal
