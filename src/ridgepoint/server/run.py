"""The serving process's life: bind, load behind a 503, serve, drain on the first signal, leave on the second.

    1 bind the socket and answer /health with 503 "loading"      2 start the engine; if it cannot, leave with its error
    3 serve                                                      4 SIGTERM/SIGINT: refuse new work with 503, let running
    requests finish (at most `drain_s`), end the engine, leave   5 a second signal: cut what runs, leave now

Invariant: the engine process never outlives this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from ridgepoint.engine.tokenizer import Tokenizer
from ridgepoint.errors import ConfigError, EngineError
from ridgepoint.server.app import create_app
from ridgepoint.server.config import ServerConfig
from ridgepoint.server.generate import Engine
from ridgepoint.server.log import Log
from ridgepoint.server.protocol import Connection
from ridgepoint.server.service import Service

_POLL_S = 0.02  # while draining


def serve(
    config: ServerConfig, tokenizer: Tokenizer, engine: Engine, *, announce: Callable[[str], None] = lambda line: None
) -> signal.Signals | None:
    """Serve until a signal, which is returned. `announce` gets the lines a person wants to read.

    Raises what made serving impossible.
    """
    listener = bind(config)
    return asyncio.run(_Server(config, tokenizer, engine, announce).run(listener))


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket; its port goes to `port_file`."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}",
            hint="choose another --port, or 0 to let the system choose",
        ) from error
    if config.port_file is not None:
        partial = Path(config.port_file + ".partial")
        partial.write_text(f"{listener.getsockname()[1]}\n")
        partial.replace(config.port_file)  # a reader never sees half a number
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: here the first signal drains."""

    def __init__(
        self, config: ServerConfig, tokenizer: Tokenizer, engine: Engine, announce: Callable[[str], None]
    ) -> None:
        self._settings = config
        self._engine = engine
        self._announce = announce
        self._log = Log(config.log_level)
        self._service = Service(config, tokenizer, engine)
        self._first_signal: signal.Signals | None = None
        self._leaving = asyncio.Event()  # a signal came, or the engine could not start
        self._now = asyncio.Event()  # a second signal came
        limits = config.limits
        protocol = type("Connection", (Connection,), {"head_timeout_s": limits.head_timeout_s})
        _quiet_uvicorn(self._log)
        super().__init__(
            uvicorn.Config(
                create_app(self._service, self._log),
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # handed to the loop's timer as it is
                timeout_graceful_shutdown=5,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield  # `run` has its own

    async def run(self, listener: socket.socket) -> signal.Signals | None:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        serving = asyncio.create_task(self.serve(sockets=[listener]))
        try:
            await self._load_and_wait(_url(listener))
        finally:
            self.force_exit = self._now.is_set()
            if self._engine.in_flight:  # cut short: their clients hear of it before the connections close
                await self._engine.close()
            self.should_exit = True
            await serving
            await self._engine.close()
        return self._first_signal

    def _on_signal(self, number: signal.Signals) -> None:
        if self._first_signal is not None:
            self._now.set()
        self._first_signal = self._first_signal or number
        self._service.draining = True
        self._leaving.set()

    async def _load_and_wait(self, url: str) -> None:
        self._announce(self._service.reasoning_note)
        self._announce(f"loading {self._settings.model_name}; listening on {url}")
        loading = asyncio.create_task(self._engine.start())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({loading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._service.loaded = True
                self._announce(f"serving {self._settings.model_name} on {url}/v1 (live page: {url})")
                await self._until_signal(leaving)
        finally:
            for task in (loading, leaving):
                task.cancel()
            await asyncio.gather(loading, leaving, return_exceptions=True)
        await self._drain()

    async def _until_signal(self, leaving: asyncio.Task[bool]) -> None:
        """Serve; an engine that dies is logged, and its absence is what /health and every request then say."""
        ended = asyncio.create_task(self._engine_end())
        try:
            await asyncio.wait({leaving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not leaving.done():
                error = ended.result()
                self._log("error", "engine_ended", error=str(error) if error else "it left by itself")
                await leaving
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _engine_end(self) -> EngineError | None:
        error: EngineError | None = await self._engine.wait_ended()
        return error

    async def _drain(self) -> None:
        """Let requests that run finish; /health and new requests get 503 meanwhile."""
        if self._service.loaded and self._engine.alive and self.server_state.tasks:
            self._announce(f"draining: {self._engine.in_flight} sequences run; a second signal stops them")
        deadline_s = asyncio.get_running_loop().time() + self._settings.drain_s
        while self._engine.in_flight and not self._now.is_set():
            if asyncio.get_running_loop().time() > deadline_s:
                self._log("warning", "drain_timeout", in_flight=self._engine.in_flight)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), _POLL_S)
        self._log("info", "leaving", in_flight=self._engine.in_flight)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _quiet_uvicorn(log: Log) -> None:
    """uvicorn's own messages in our form, from warnings on."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log("error" if record.levelno >= logging.ERROR else "warning", "uvicorn", message=record.getMessage())

    logger = logging.getLogger("uvicorn.error")
    logger.handlers[:] = [Forward(level=logging.WARNING)]
    logger.propagate = False
