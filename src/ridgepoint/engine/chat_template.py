"""Chat messages to prompt text, by the checkpoint's own jinja template, in a sandbox.

The template is a stranger's program: it sees plain JSON values, may not change them, may not reach Python, and may not
write more than `MAX_PROMPT_CHARS`. Filters and globals are the ones `transformers` gives templates, with its meaning.
Knows no tokenizer. Invariant: a template that raises or loops ends as `RequestError`, never as a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from ridgepoint.errors import CheckpointError, MissingExtraError, RequestError

MAX_PROMPT_CHARS = 16 << 20


class ChatTemplate:
    """A compiled template. `variables` are the names it reads, so that an option it would ignore can be refused."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], origin: str) -> None:
        environment = _environment()
        from jinja2 import TemplateSyntaxError, meta

        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except TemplateSyntaxError as error:
            raise CheckpointError(f"chat template in {origin}, line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise CheckpointError(f"chat template in {origin} is nested too deeply") from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """The prompt text. `variables` are extra names for the template; they win over the special tokens."""
        from jinja2 import TemplateError
        from jinja2.sandbox import SecurityError

        names: dict[str, Any] = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _join_limited(self._template.generate(**names))
        except SecurityError as error:
            raise RequestError(f"the chat template does something unsafe: {error}", param="messages") from error
        except TemplateError as error:
            raise RequestError(
                f"the chat template refuses these messages: {error.message or type(error).__name__}", param="messages"
            ) from error
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RequestError(f"the chat template fails on these messages: {reason}", param="messages") from error


def _join_limited(pieces: Iterable[str]) -> str:
    text: list[str] = []
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_PROMPT_CHARS:
            raise ValueError(f"it writes more than {MAX_PROMPT_CHARS} characters")
        text.append(piece)
    return "".join(text)


def _environment() -> Any:
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("jinja2", "serve", "rendering a chat template") from error

    class GenerationBlock(Extension):
        """`{% generation %}...{% endgeneration %}` marks what the assistant wrote, for training; here its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment
