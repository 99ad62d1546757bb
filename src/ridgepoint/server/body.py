"""Request bodies: bytes to a checked struct, or a 4xx that names the field.

JSON is read strictly by msgspec against the schema: no NaN, no lone surrogates, no unknown names, no wrong types, and
nesting is refused at the first level that the schema does not have.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TypeVar

import msgspec
from starlette.requests import Request

from ridgepoint.errors import RequestError
from ridgepoint.server.allowed import hint_at

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_QUOTED = re.compile(r"`([^`]*)`")


async def read_body(request: Request, schema: type[T]) -> T:
    """The body as a `schema`. The content type must be JSON: a browser's form cannot be turned into a call."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError(f"content type must be application/json, got {kind or 'none'!r}", status=415)
    return parse(await request.body(), schema)


def parse(body: bytes, schema: type[T]) -> T:
    """`body` as JSON of shape `schema`; raises `RequestError` with the field in `param`."""
    if not body.strip():
        raise RequestError("the request has no body", hint="send a JSON object")
    try:
        return _decoder(schema).decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), schema) from error
    except (ValueError, RecursionError) as error:  # DecodeError and UnicodeDecodeError are ValueErrors
        raise RequestError(f"the body is not valid JSON: {_json_problem(error)}", code="invalid_json") from error


@cache
def _decoder(schema: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(schema)


def _json_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "a string is not UTF-8"
    return str(error).removeprefix("JSON is malformed: ")


def _refusal(message: str, schema: type[msgspec.Struct]) -> RequestError:
    """msgspec says `Expected `int`, got `str` - at `$.max_tokens``; OpenAI names the parameter first."""
    found = _PATH.search(message)
    path = found.group(1).replace("[...]", "") if found else ""
    problem = message[: found.start()] if found else message
    names = _QUOTED.findall(problem)
    if "unknown field" in problem:
        name = f"{path}.{names[-1]}" if path else names[-1]
        return RequestError(
            f"unknown parameter {name!r}",
            param=name,
            code="unknown_parameter",
            hint="/openapi.json lists those accepted",
        )
    if "missing required field" in problem:
        name = f"{path}.{names[-1]}" if path else names[-1]
        return RequestError(f"missing required parameter {name!r}", param=name, code="missing_required_parameter")
    problem = problem.replace("`", "").replace(" | null", "")
    subject = f"{path!r}: " if path else "the body: "
    code = "invalid_type" if problem.startswith("Expected") and ", got" in problem else "invalid_value"
    hint = hint_at(schema, path) if code == "invalid_value" else None
    return RequestError(subject + problem[:1].lower() + problem[1:], param=path or None, code=code, hint=hint)
