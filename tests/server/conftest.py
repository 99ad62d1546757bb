from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_tokenizer import write_tokenizer
from toy_engine import ToyEngine

from ridgepoint.engine.tokenizer import Tokenizer, load_tokenizer
from ridgepoint.server.app import create_app
from ridgepoint.server.config import Limits, ServerConfig
from ridgepoint.server.log import Log
from ridgepoint.server.service import Service


@dataclass
class Served:
    """An application in this process, the engine under it, and what it logged."""

    http: httpx.AsyncClient
    engine: ToyEngine
    service: Service
    app: Any
    log: io.StringIO

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"prompt": "Hello", **body})

    async def chat(self, content: Any = "hi", **body: Any) -> httpx.Response:
        messages = body.pop("messages", [{"role": "user", "content": content}])
        return await self.http.post("/v1/chat/completions", json={"messages": messages, **body})


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def serve(tokenizer: Tokenizer) -> Callable[..., Any]:
    @asynccontextmanager
    async def open_(
        engine: ToyEngine | None = None, *, tokens: Tokenizer | None = None, limits: Limits | None = None, **config: Any
    ) -> AsyncIterator[Served]:
        engine = engine or ToyEngine()
        settings = ServerConfig(model_name="toy", limits=limits or Limits(), **config)
        service = Service(settings, tokens or tokenizer, engine)
        service.loaded = True
        log = io.StringIO()
        app = create_app(service, Log("debug", log))
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://toy") as http:
            yield Served(http=http, engine=engine, service=service, app=app, log=log)
        assert engine.streams == {}, "every sequence has left the engine"

    return open_


@pytest.fixture
def no_template(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path / "plain", template=None))
