"""uvicorn's HTTP/1.1 connection with two manners added: a clock on request heads, and OpenAI's form for what is not HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from ridgepoint.server.errors import error_reply


class Connection(H11Protocol):
    """Closes a connection whose request head takes longer than `head_timeout_s`, from connecting or its first byte."""

    head_timeout_s = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is complete (or hopeless)
            self._stop_head_timer()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._send_error(400, b"Bad Request", "this is not an HTTP request the server understands")

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._send_error(408, b"Request Timeout", f"no request head within {self.head_timeout_s:g} s")

    def _send_error(self, status: int, reason: bytes, message: str) -> None:
        body = msgspec.json.encode(error_reply(status, message))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events: list[Any] = [h11.Response(status_code=status, headers=headers, reason=reason)]
            for event in [*events, h11.Data(data=body), h11.EndOfMessage()]:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
