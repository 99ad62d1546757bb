"""What happens to every request before a handler sees it: id, log line, key, body limits. Pure ASGI, so streams stay streams.

Outermost first: `Outer` (request id, access log, last resort for bugs), `Auth`, `BodyLimits`. Invariant: every request
gets exactly one log line and, unless the client is gone, exactly one response.
"""

from __future__ import annotations

import asyncio
import re
import time
import traceback
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ridgepoint.errors import RequestError
from ridgepoint.server.config import Limits
from ridgepoint.server.errors import error_response
from ridgepoint.server.log import Log
from ridgepoint.server.metrics import Metrics
from ridgepoint.server.service import Keyring
from ridgepoint.server.sse import ClientGoneError

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}\Z")
OPEN_PATHS = frozenset({"/", "/health"})  # the page holds no figures
CLIENT_GONE_STATUS = 499  # never sent; nginx's number for it, in the log


class Outer:
    """Gives the request its id, writes its log line, and answers 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, log: Log, metrics: Metrics, known_paths: frozenset[str]) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics
        self._known_paths = known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted_id = Headers(scope=scope).get("x-request-id", "")
        request_id = wanted_id if _SANE_ID.match(wanted_id) else f"req_{uuid.uuid4().hex}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        notes: dict[str, Any] = {}
        state["notes"] = notes
        status: int | None = None
        begun_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGoneError:
            status = status or CLIENT_GONE_STATUS
        except Exception as error:
            self._log("error", "bug", id=request_id, error=type(error).__name__, trace=traceback.format_exc())
            if status is None:
                body = "internal error; the server's log has the details"
                await error_response(500, body, code="internal_error")(scope, receive, send_with_id)
        finally:
            path = scope["path"] if scope["path"] in self._known_paths else "other"
            self._metrics.observe_http(path, status or CLIENT_GONE_STATUS)
            self._log(
                "debug" if scope["path"] in ("/health", "/metrics") and status == 200 else "info",
                "request",
                id=request_id,
                client=(scope.get("client") or ("", 0))[0] or None,
                method=scope["method"],
                path=scope["path"],
                status=status or CLIENT_GONE_STATUS,
                seconds=time.monotonic() - begun_s,
                **notes,
            )


class Auth:
    """401 without a known key. The caller's key is left in `scope["state"]["key"]` (None where none is needed)."""

    def __init__(self, app: ASGIApp, keys: Keyring) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"]["key"] = None
        if self._keys and scope["path"] not in OPEN_PATHS:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.accepts(key.strip()):
                message = "no API key was given" if not key else "the API key is not known"
                response = error_response(
                    401,
                    f"{message} (hint: send 'Authorization: Bearer KEY')",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer", "connection": "close"},
                )
                await response(scope, receive, send)
                return
            scope["state"]["key"] = key.strip()
        await self._app(scope, receive, send)


class BodyLimits:
    """413 past `max_body_bytes`, announced or not; 408 when a body stops arriving."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.max_body_bytes
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced[:19]) > limit:
            error = too_large(limit, f": {announced[:19]} were announced")
            response = error_response(error.status, str(error), code=error.code, headers={"connection": "close"})
            await response(scope, receive, send)
            return
        num_bytes, whole = 0, False

        async def limited() -> Message:
            nonlocal num_bytes, whole
            if whole:
                return await receive()  # only a disconnect can follow
            try:
                message = await asyncio.wait_for(receive(), self._limits.body_timeout_s)
            except TimeoutError:
                raise RequestError(
                    f"the body stopped arriving for {self._limits.body_timeout_s:g} s", status=408, code="body_timeout"
                ) from None
            num_bytes += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if num_bytes > limit:
                raise too_large(limit)
            return message

        await self._app(scope, limited, send)


def too_large(limit: int, announced: str = "") -> RequestError:
    return RequestError(f"the body is larger than {limit} bytes{announced}", status=413, code="body_too_large")
