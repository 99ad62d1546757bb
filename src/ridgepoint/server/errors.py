"""Every refusal as OpenAI writes it: one JSON object, whatever went wrong and wherever.

Decides the HTTP status and OpenAI `type` of an error. Invariant: no response says anything about paths, code or keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ridgepoint.errors import EngineError, RequestError
from ridgepoint.server.replies import ErrorDetail, ErrorReply


def error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_reply(status: int, message: str, *, param: str | None = None, code: str | None = None) -> ErrorReply:
    return ErrorReply(error=ErrorDetail(message=message, type=error_type(status), param=param, code=code))


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = msgspec.json.encode(error_reply(status, message, param=param, code=code))
    return Response(body, status_code=status, media_type="application/json", headers=dict(headers or {}))


def describe(error: Exception) -> tuple[int, ErrorReply]:
    """(status, body) of any exception. Only errors of the project's own tree are quoted; others are bugs."""
    if isinstance(error, RequestError):
        return error.status, error_reply(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, EngineError):
        return 503, error_reply(503, f"the engine cannot take work: {error}", code="engine_unavailable")
    return 500, error_reply(500, "internal error; the server's log has the details", code="internal_error")
