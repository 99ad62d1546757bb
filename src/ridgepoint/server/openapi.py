"""The OpenAPI document, made from the same structs that read the requests and write the responses."""

from __future__ import annotations

from typing import Any

import msgspec

from ridgepoint import __version__
from ridgepoint.server import replies, schema

_JSON = "application/json"


def openapi_document(*, with_keys: bool) -> dict[str, Any]:
    """`with_keys` says that the server asks for an API key."""
    bodies = [schema.CompletionRequest, schema.ChatRequest, schema.TokenizeRequest, schema.DetokenizeRequest]
    answers = [
        replies.Completion, replies.ChatCompletion, replies.ModelList, replies.ModelCard, replies.TokenizeReply,
        replies.DetokenizeReply, replies.HealthReply, replies.VersionReply, replies.ErrorReply,
    ]  # fmt: skip
    _, components = msgspec.json.schema_components([*bodies, *answers], ref_template="#/components/schemas/{name}")
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ridgepoint", "version": __version__, "description": "OpenAI-compatible text generation."},
        "paths": {
            "/v1/completions": {"post": _post("Complete a text", schema.CompletionRequest, replies.Completion, True)},
            "/v1/chat/completions": {"post": _post("Answer a chat", schema.ChatRequest, replies.ChatCompletion, True)},
            "/v1/models": {"get": _get("List the models", replies.ModelList)},
            "/v1/models/{model}": {
                "get": {
                    **_get("Describe a model", replies.ModelCard, 404),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                }
            },
            "/tokenize": {
                "post": _post("Text or messages to token ids", schema.TokenizeRequest, replies.TokenizeReply)
            },
            "/detokenize": {"post": _post("Token ids to text", schema.DetokenizeRequest, replies.DetokenizeReply)},
            "/health": {"get": _health()},
            "/version": {"get": _get("The server's version", replies.VersionReply)},
            "/metrics": {"get": _text("Prometheus metrics", "text/plain")},
            "/": {"get": _text("A live page of the figures in /metrics", "text/html")},
        },
        "components": {"schemas": components},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _answer(text: str, struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": _ref(struct)}}}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): _answer("Refused; the error says why", replies.ErrorReply) for status in statuses}


def _get(summary: str, reply: type[msgspec.Struct], *statuses: int) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _answer("OK", reply), **_errors(401, *statuses)}}


def _post(
    summary: str, body: type[msgspec.Struct], reply: type[msgspec.Struct], streams: bool = False
) -> dict[str, Any]:
    ok = _answer("OK", reply)
    if streams:
        ok["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref(body)}}},
        "responses": {"200": ok, **_errors(400, 401, 404, 408, 413, 415, 429, 500, 503)},
    }


def _health() -> dict[str, Any]:
    return {
        "summary": "Whether work is taken",
        "responses": {
            "200": _answer("Yes", replies.HealthReply),
            "503": _answer("Loading, draining or failed", replies.HealthReply),
        },
    }


def _text(summary: str, kind: str) -> dict[str, Any]:
    content = {kind: {"schema": {"type": "string"}}}
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}}}
