"""The HTTP application: routes to handlers, handlers to the service. No decisions of its own.

Bodies are read against `server.schema` and written from `server.replies`; FastAPI routes and wraps.
"""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ridgepoint import __version__
from ridgepoint.errors import EngineError, RequestError
from ridgepoint.server import replies
from ridgepoint.server.body import read_body
from ridgepoint.server.chat import start_chat
from ridgepoint.server.completions import start_completion
from ridgepoint.server.errors import describe, error_response
from ridgepoint.server.job import Job
from ridgepoint.server.log import Log
from ridgepoint.server.metrics import CONTENT_TYPE
from ridgepoint.server.middleware import Auth, BodyLimits, Outer
from ridgepoint.server.openapi import openapi_document
from ridgepoint.server.page import page_response
from ridgepoint.server.prompts import encode_chat, encode_prompt
from ridgepoint.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from ridgepoint.server.service import Keyring, OverloadedError, Service
from ridgepoint.server.sse import EventStream, until_disconnect
from ridgepoint.server.tools import shown

_PATHS = frozenset(
    {
        "/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize", "/health", "/version",
        "/metrics", "/openapi.json", "/",
    }
)  # fmt: skip


def create_app(service: Service, log: Log) -> FastAPI:
    """The application over a service that may still be loading."""
    config = service.config
    middleware = [Middleware(Outer, log=log, metrics=service.metrics, known_paths=_PATHS)]
    if config.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    middleware += [
        Middleware(Auth, keys=Keyring(config.api_keys)),
        Middleware(BodyLimits, limits=config.limits),
    ]
    app = FastAPI(
        middleware=middleware, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        exception_handlers={
            RequestError: _on_error, EngineError: _on_error, HTTPException: _on_http_error,
        },
    )  # fmt: skip
    _add_generation(app, service)
    _add_tokens(app, service)
    _add_facts(app, service)
    return app


def _reply(struct: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(struct), status_code=status, media_type="application/json")


# ---------------------------------------------------------------- errors


async def _on_error(request: Request, error: Exception) -> Response:
    status, reply = describe(error)
    request.state.notes["error"] = reply.error.message[:300]
    response = _reply(reply, status)
    if isinstance(error, OverloadedError):
        response.headers["retry-after"] = str(error.retry_after_s)
    if status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not wanted
    return response


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"no such path: {request.method} {request.url.path[:200]}",
        405: f"method {request.method} is not allowed for {request.url.path[:200]}",
    }.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(error.status_code, message, code=code, headers=error.headers)


# ---------------------------------------------------------------- generation


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest)
        job = await start_completion(service, body, request.state.key)
        return await _answer(request, job, stream=bool(body.stream))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        job = await start_chat(service, body, request.state.key)
        return await _answer(request, job, stream=bool(body.stream))


async def _answer(request: Request, job: Job, *, stream: bool) -> Response:
    """Run the job to its end, or hand it to a stream; closed in every case."""

    async def end() -> None:
        await job.aclose()
        request.state.notes.update(job.notes())

    if stream:
        try:
            return await EventStream.begin(request, job.events(), end)
        except BaseException:
            await end()
            raise
    try:
        return _reply(await until_disconnect(request, job.collect()))
    finally:
        await end()


# ---------------------------------------------------------------- tokens


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read_body(request, TokenizeRequest)
        service.check_ready()
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            given = "neither" if body.prompt is None else "both"
            raise RequestError(f"give either prompt or messages, got {given}", param="prompt")
        capacity = service.capacity
        if body.messages is not None:
            prompt = await encode_chat(
                body.messages, service.tokenizer, capacity,
                add_generation_prompt=body.add_generation_prompt is not False,
                variables={**(body.chat_template_kwargs or {}), **({"tools": shown(body.tools, service.harmony)} if body.tools else {})},
                add_special_tokens=bool(body.add_special_tokens), harmony=service.harmony,
            )  # fmt: skip
        elif body.prompt:
            prompt = await encode_prompt(
                body.prompt, service.tokenizer, capacity, add_special_tokens=body.add_special_tokens is not False
            )
        else:
            prompt = None
        ids = prompt.ids if prompt else service.tokenizer.encode(
            "", add_special_tokens=body.add_special_tokens is not False
        )  # fmt: skip
        strings = [service.tokenizer.piece(token_id) or "" for token_id in ids] if body.return_token_strs else None
        return _reply(
            replies.TokenizeReply(count=len(ids), max_model_len=capacity.max_tokens, tokens=ids, token_strs=strings)
        )

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest)
        service.check_ready()
        service.check_model(body.model)
        vocab_size = service.capacity.vocab_size
        for token_id in body.tokens:
            if token_id >= vocab_size:
                raise RequestError(f"token id {token_id} is not below the vocabulary's {vocab_size}", param="tokens")
        return _reply(
            replies.DetokenizeReply(
                prompt=service.tokenizer.decode(body.tokens, skip_special=bool(body.skip_special_tokens))
            )
        )


# ---------------------------------------------------------------- facts


def _add_facts(app: FastAPI, service: Service) -> None:
    def card() -> replies.ModelCard:
        service.check_ready()
        name = service.config.model_name
        return replies.ModelCard(id=name, created=service.created, root=name, max_model_len=service.capacity.max_tokens)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return _reply(replies.ModelList(data=[card()]))

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        service.check_model(model)
        return _reply(card())

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health(request: Request) -> Response:
        state = service.state
        detail = service.engine.failure if state == "failed" else None
        return _reply(replies.HealthReply(status=state, detail=detail), 200 if state == "ok" else 503)

    @app.get("/version")
    async def version(request: Request) -> Response:
        return _reply(replies.VersionReply(version=__version__))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return Response(service.metrics.scrape(), headers={"content-type": CONTENT_TYPE})

    @app.get("/")
    async def live(request: Request) -> Response:
        return page_response()

    document = openapi_document(with_keys=bool(service.config.api_keys))

    @app.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        return Response(msgspec.json.encode(document), media_type="application/json")
