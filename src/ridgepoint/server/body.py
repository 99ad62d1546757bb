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
from ridgepoint.server.allowed import STEP, hint_at

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
MAX_QUOTED_CHARS = 200


async def read_body(request: Request, schema: type[T]) -> T:
    """The body as a `schema`. The content type must be JSON: a browser's form cannot be turned into a call."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(f"content encoding {_short(encoding)!r}: bodies are taken as they are", status=415)
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
        raise _refusal(str(error), body, schema) from error
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


def _refusal(message: str, body: bytes, schema: type[msgspec.Struct]) -> RequestError:
    """msgspec says `Expected `int`, got `str` - at `$.max_tokens``; OpenAI names the parameter first."""
    found = _PATH.search(message)
    path = found.group(1).replace("[...]", "") if found else ""
    problem = message[: found.start()] if found else message
    missing = problem.startswith("Object missing required field")
    if missing or problem.startswith("Object contains unknown field"):
        field = _short(problem.partition("`")[2].removesuffix("`"))
        name = f"{path}.{field}" if path else field
        if missing:
            return RequestError(f"missing required parameter {name!r}", param=name, code="missing_required_parameter")
        return RequestError(
            f"unknown parameter {name!r}",
            param=name,
            code="unknown_parameter",
            hint="/openapi.json lists those accepted",
        )
    problem = _short(problem.replace("`", "").replace(" | null", ""))
    is_type = problem.startswith("Expected") and ", got" in problem
    if problem.startswith("Expected") and not is_type:
        problem += _got(body, path)
    subject = f"{path!r}: " if path else "the body: "
    code = "invalid_type" if is_type else "invalid_value"
    return RequestError(
        subject + problem[:1].lower() + problem[1:], param=path or None, code=code, hint=hint_at(schema, path)
    )


def _got(body: bytes, path: str) -> str:
    """What stands there: a number as it came, of texts and lists (nobody's but the caller's) the length alone."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):  # behind the field that is wrong the body is not even JSON
        return ""
    for step in STEP.findall(path):
        value = value[int(step[1:-1])] if step.startswith("[") else value[step]
    return f", got length {len(value)}" if isinstance(value, str | list) else f", got {_short(repr(value))}"


def _short(text: str) -> str:
    """An error is read by people, and a body may be long."""
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "..."
