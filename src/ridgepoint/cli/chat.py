"""`ridgepoint chat`: a conversation in the terminal. Ctrl-C stops the answer, Ctrl-D leaves.

The answers are data and go to stdout; prompts, remarks and what the model reasons go to stderr. A model without a chat template is
told so once and continues each line as plain text instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgepoint.cli.backend import Verbose, WeightCache, WeightFormat, find_backend

if TYPE_CHECKING:
    from ridgepoint.server.backends import Backend

HELP = "/new forgets the conversation, /help shows this; Ctrl-C stops an answer, Ctrl-D leaves"


def register(app: typer.Typer) -> None:
    app.command(
        "chat",
        short_help="Talk to a model in the terminal.",
        help="Talk to MODEL: a checkpoint folder, a hub id, nothing for the embedded model, or a server at --url.",
        epilog="Example: echo 'class Stack:' | ridgepoint chat --max-tokens 64",
    )(chat)


def chat(
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub id (or the name at --url); none: the embedded model.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Talk to this OpenAI-compatible server instead.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for --url; or OPENAI_API_KEY.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = 0.7,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    shows_reasoning: Annotated[
        bool, typer.Option("--show-reasoning/--hide-reasoning", help="What the model reasons, on stderr.")
    ] = True,
    weight_format: WeightFormat = None,
    weight_cache: WeightCache = None,
    verbose: Verbose = False,
) -> None:
    talk = _Talk(
        backend=find_backend(
            model, url, api_key, weight_format=weight_format, weight_cache=weight_cache, verbose=verbose
        ),
        system=system,
        options={"max_tokens": max_tokens, "temperature": temperature, "seed": seed},
        shows_reasoning=shows_reasoning,
    )
    with asyncio.Runner() as runner:
        runner.run(talk.open())
        try:
            _loop(runner, talk)
        finally:
            runner.run(talk.close())


def _loop(runner: asyncio.Runner, talk: _Talk) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history for input()
    _remark(f"{talk.backend.model}: {HELP}" if interactive else talk.backend.model)
    while True:
        try:
            line = _read(interactive)
        except KeyboardInterrupt:
            _remark("\n(Ctrl-D leaves)")
            continue
        except EOFError:
            return
        if not line.strip():
            continue
        if interactive and line.strip() == "/new":
            talk.messages.clear()
        elif interactive and line.strip() == "/help":
            _remark(HELP)
        else:
            _answer(runner, talk, line, interactive=interactive)


def _read(interactive: bool) -> str:
    if interactive:
        print("> ", end="", file=sys.stderr, flush=True)
        return input()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _answer(runner: asyncio.Runner, talk: _Talk, line: str, *, interactive: bool) -> None:
    from ridgepoint.errors import RequestError

    try:
        runner.run(talk.say(line))
    except KeyboardInterrupt:
        if not interactive:
            raise
        _remark("(stopped)")
    except RequestError as error:  # this turn cannot be; the conversation goes on
        if not interactive:
            raise
        _remark(f"error: {error}")
    print(flush=True)


@dataclass
class _Talk:
    backend: Backend
    system: str | None
    options: dict[str, Any]
    shows_reasoning: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    async def open(self) -> None:
        await self.backend.__aenter__()
        if self.backend.chats is False:
            _remark(f"{self.backend.model} has no chat template: each line is continued as plain text")

    async def close(self) -> None:
        await self.backend.__aexit__(None, None, None)

    async def say(self, line: str) -> None:
        """Print the answer to `line`. An answer that was stopped stays in the conversation as far as it got; reasoning does not."""
        from ridgepoint.server.body import parse
        from ridgepoint.server.parts import Thought
        from ridgepoint.server.schema import ChatRequest, CompletionRequest

        pieces: list[str] = []
        if self.backend.chats is False:
            stream = self.backend.stream(parse(_body(prompt=line, **self.options), CompletionRequest))
        else:
            self.messages.append({"role": "user", "content": line})
            head = [{"role": "system", "content": self.system}] if self.system else []
            stream = self.backend.stream(parse(_body(messages=head + self.messages, **self.options), ChatRequest))
        thoughts = _Thoughts(shown=self.shows_reasoning)
        answered = False
        try:
            async with contextlib.aclosing(stream):  # type: ignore[type-var]
                async for piece in stream:
                    if isinstance(piece, Thought):
                        thoughts.show(piece.text)
                        continue
                    thoughts.end()
                    answered = True
                    pieces.append(piece)
                    print(piece, end="", flush=True)
            answered = True
            thoughts.end()
            ending = self.backend.ending
            if not pieces and ending is not None and ending.reasoning_tokens:
                _remark(f"({ending.reasoning_tokens} tokens of reasoning and no answer: --max-tokens is too few)")
        finally:
            thoughts.end()
            if self.backend.chats is not False:
                if answered:
                    self.messages.append({"role": "assistant", "content": "".join(pieces)})
                else:
                    self.messages.pop()


class _Thoughts:
    """Reasoning as it comes: on stderr, dim where that is a terminal, in a paragraph of its own."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._dims = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        self._open = False

    def show(self, text: str) -> None:
        if not self._shown:
            return
        if self._dims and not self._open:
            print("\x1b[2m", end="", file=sys.stderr)
        self._open = True
        print(text, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._open:
            _remark("\x1b[0m" if self._dims else "")
            self._open = False


def _body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _remark(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
