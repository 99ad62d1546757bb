"""`ridgepoint complete`: continue a text. stdout is the continuation alone, as it is made."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ridgepoint.cli.backend import Verbose, WeightCache, WeightFormat, find_backend

if TYPE_CHECKING:
    from ridgepoint.server.backends import Backend
    from ridgepoint.server.schema import CompletionRequest


def register(app: typer.Typer) -> None:
    app.command(
        "complete",
        short_help="Continue a text.",
        help="Continue PROMPT; stdout is only what comes after it. '-' reads the prompt from stdin.",
        epilog="Example: ridgepoint complete 'def read_json(path):' --max-tokens 48",
    )(complete)


def complete(
    prompt: Annotated[str, typer.Argument(help="Text to continue; '-' reads stdin.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id (or the name at --url); none: the embedded model.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server instead.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for --url; or OPENAI_API_KEY.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string; repeat for more.")] = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt first.")] = False,
    weight_format: WeightFormat = None,
    weight_cache: WeightCache = None,
    verbose: Verbose = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end (schema ridgepoint.complete/1).")
    ] = False,
) -> None:
    from ridgepoint.errors import ConfigError
    from ridgepoint.server.body import parse
    from ridgepoint.server.schema import CompletionRequest

    text = sys.stdin.read() if prompt == "-" else prompt
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError("the prompt is not valid UTF-8")
    fields = {
        "prompt": text, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        "stop": stop or None,
    }  # fmt: skip
    request = parse(json.dumps(fields).encode(), CompletionRequest)
    backend = find_backend(model, url, api_key, weight_format=weight_format, weight_cache=weight_cache, verbose=verbose)
    asyncio.run(_print(backend, request, text if echo else "", as_json=json_))


async def _print(backend: Backend, request: CompletionRequest, echo: str, *, as_json: bool) -> None:
    pieces: list[str] = []
    async with backend:
        if not as_json and echo:
            print(echo, end="", flush=True)
        async for piece in backend.stream(request):
            assert isinstance(piece, str), "a completion has no reasoning of its own"
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
    ending = backend.ending
    assert ending is not None
    if as_json:
        result = {
            "schema": "ridgepoint.complete/1", "model": backend.model, "text": echo + "".join(pieces),
            "finish_reason": ending.finish_reason, "prompt_tokens": ending.prompt_tokens,
            "completion_tokens": ending.completion_tokens,
        }  # fmt: skip
        print(json.dumps(result, ensure_ascii=False))
    elif sys.stdout.isatty():
        print()
