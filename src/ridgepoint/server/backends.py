"""Two ways to get an answer outside the server: an engine started for this command, or anybody's OpenAI-compatible URL.

Both take the same request structs and yield what is said, and what is reasoned, as it comes; `ending` then says why it ended and
what it cost.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol

import msgspec

from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.source import ModelSource
from ridgepoint.errors import EngineError, MissingExtraError, RequestError, RidgepointError
from ridgepoint.server.chat import start_chat
from ridgepoint.server.completions import start_completion
from ridgepoint.server.config import ServerConfig
from ridgepoint.server.parts import Thought
from ridgepoint.server.schema import ChatRequest, CompletionRequest, StreamOptions
from ridgepoint.server.service import Service

Request = CompletionRequest | ChatRequest


class Ending(msgspec.Struct, kw_only=True, frozen=True):
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None = None  # of the completion's


class Backend(Protocol):
    """`model` is its name; `chats` says whether it takes messages (None: only asking would tell)."""

    model: str
    chats: bool | None
    ending: Ending | None

    async def __aenter__(self) -> Backend: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stream(self, request: Request) -> AsyncIterator[str | Thought]: ...


KEEP_GRACE_S = 120.0  # a short command's first start of a model may still have its packed weights to write


class LocalBackend:
    """An engine of its own, for as long as the `async with` lasts. `verbose`: it tells what it chose and why."""

    def __init__(self, source: ModelSource, options: EngineOptions, *, verbose: bool = False) -> None:
        from ridgepoint.engine.client import EngineClient
        from ridgepoint.engine.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(source.folder)
        self._engine = EngineClient(options, quiet=not verbose)
        self._service = Service(ServerConfig(model_name=source.name), tokenizer, self._engine)
        self.model = source.name
        self.chats: bool | None = tokenizer.chat_template is not None
        self.ending: Ending | None = None

    async def __aenter__(self) -> LocalBackend:
        await self._engine.start()
        self._service.loaded = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._engine.close(KEEP_GRACE_S)
        else:
            await self._engine.close()

    async def stream(self, request: Request) -> AsyncIterator[str | Thought]:
        self.ending = None
        if isinstance(request, ChatRequest):
            job: Any = await start_chat(self._service, request, None)
        else:
            job = await start_completion(self._service, request, None)
        try:
            async for _, piece in job.pieces():
                for part in piece.parts:
                    if isinstance(part, str | Thought):
                        yield part
        finally:
            await job.aclose()
            usage = job.usage()
            self.ending = Ending(
                finish_reason=job.generations[0].finish_reason,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens,
            )


class RemoteBackend:
    """Any server that speaks the OpenAI API. `url` may end in /v1 or not; `model` None takes the first it lists."""

    def __init__(self, url: str, *, model: str | None, api_key: str | None, timeout_s: float = 600.0) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("httpx", "serve", "talking to a server") from error
        self._url = api_root(url)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(timeout_s, connect=10.0))
        self._wanted_model = model
        self.model = model or ""
        self.chats: bool | None = None
        self.ending: Ending | None = None

    async def __aenter__(self) -> RemoteBackend:
        if self._wanted_model is None:
            self.model = await self._first_model()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def stream(self, request: Request) -> AsyncIterator[str | Thought]:
        import httpx

        self.ending = None
        is_chat = isinstance(request, ChatRequest)
        path = "/chat/completions" if is_chat else "/completions"
        options = StreamOptions(include_usage=True)
        whole = msgspec.structs.replace(request, model=self.model, stream=True, stream_options=options)
        body = {name: value for name, value in msgspec.to_builtins(whole).items() if value is not None}
        finish: str | None = None
        usage: dict[str, Any] = {}
        try:
            async with self._http.stream("POST", self._url + path, json=_without_none(body)) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, await response.aread())
                async for event in events_of(response.aiter_lines()):
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", []):
                        finish = choice.get("finish_reason") or finish
                        told = (choice.get("delta") or {}) if is_chat else {"content": choice.get("text")}
                        if thought := told.get("reasoning_content") or told.get("reasoning"):
                            yield Thought(thought)
                        if text := told.get("content"):
                            yield text
        except httpx.HTTPError as error:
            raise EngineError(f"{self._url}: {type(error).__name__}: {error}", hint="is the server up?") from error
        finally:
            self.ending = Ending(
                finish_reason=finish,
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
                reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
            )

    async def _first_model(self) -> str:
        import httpx

        try:
            response = await self._http.get(self._url + "/models")
        except httpx.HTTPError as error:
            raise EngineError(f"{self._url}: {type(error).__name__}: {error}", hint="is the server up?") from error
        if response.status_code != 200:
            raise refusal(response.status_code, response.content)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"{self._url}/models lists no model", hint="name one with --model") from error


def api_root(url: str) -> str:
    """`http://host:8000` and `http://host:8000/v1/` are the same server."""
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"URL {url!r} must begin with http:// or https://")
    root = url.rstrip("/")
    return root if root.endswith("/v1") else root + "/v1"


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event up to [DONE]; an error event is raised."""
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if isinstance(event, dict) and event.get("error"):
            raise EngineError(f"the server failed midway: {_message(event)}")
        yield event


def refusal(status: int, body: bytes) -> RidgepointError:
    """What a non-200 answer says."""
    try:
        message = _message(json.loads(body))
    except ValueError:
        message = body[:200].decode("utf-8", errors="replace")
    return RequestError(f"the server answered {status}: {message}", status=status)


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _without_none(value: Any) -> Any:
    """Servers differ on null; what was not given is not sent."""
    if isinstance(value, dict):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value
