"""Grammars of answers in harmony: any reasoning first, then what must come.

Marks are tokens of their own, which text in a grammar never is. Invariant: what a grammar here allows, the reader reads.
"""

from __future__ import annotations

import json

from ridgepoint.errors import RequestError
from ridgepoint.server.harmony.marks import Mark, Marks
from ridgepoint.server.harmony.reader import Place
from ridgepoint.server.tool_calls.form import Schemas, json_of, one_of


def form_within(marks: Marks, place: Place, param: str) -> str | None:
    """A grammar of an answer whose final message is a form, which it calls `@form`. None where that message has begun."""
    if place == "words":
        return None
    token = _tokens(marks)
    kind = f'(" "? {token["constrain"]} "json")?' if "constrain" in token else '" json"?'
    final = f'final: {token["channel"]} "final" {kind} {token["message"]} @form\n'
    return f"start: {_lead(marks, place, param)} thought* final\n{final}" + _messages(marks)


def call_lark(marks: Marks, place: Place, schemas: Schemas) -> str:
    """A grammar of an answer that calls one of the tools. A message may be said before."""
    token = _tokens(marks)
    kind = '" json"?' + (f' | " "? {token["constrain"]} "json"' if "constrain" in token else "")
    rules = f"start: {_lead(marks, place, 'tool_choice')} (thought | preamble)* call\ncall: {one_of('call', schemas)}\n"
    for number, (name, schema) in enumerate(schemas.items()):
        to = f" to=functions.{name}"
        by_channel = f"{token['channel']} {json.dumps('commentary' + to)}"
        by_role = f'{json.dumps(to)} {token["channel"]} "commentary"'
        rules += f"call_{number}: ({by_channel} | {by_role}) kind {token['message']} {json_of(schema)}\n"
    return rules + f"kind: {kind}\n" + _messages(marks)


def _lead(marks: Marks, place: Place, param: str) -> str:
    """What must come before the first message's channel."""
    if place in ("words", "other"):
        raise RequestError(
            "the prompt ends inside a message that cannot have this form", param=param, code="invalid_value",
            hint="end the prompt where the assistant's next message begins",
        )  # fmt: skip
    return "" if place == "header" else f'{_tokens(marks)["start"]} "assistant"'


def _messages(marks: Marks) -> str:
    token = _tokens(marks)
    ending = f'{token["message"]} TEXT {token["end"]} {token["start"]} "assistant"\n'
    return (
        f'thought: {token["channel"]} "analysis" {ending}preamble: {token["channel"]} "commentary" {ending}'
        "TEXT: /(.|\\n)*/\n"
    )


def _tokens(marks: Marks) -> dict[Mark, str]:
    return {mark: f"<[{token_id}]>" for mark, token_id in marks.ids.items()}
