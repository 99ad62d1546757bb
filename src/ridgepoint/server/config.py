"""What the server is asked to be, validated once: where it listens, who may call, and how much one call may ask.

Knows nothing of the engine's own options (`engine.options`). Every limit has a name, and the refusal states it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ridgepoint.errors import ConfigError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
MIN_KEY_CHARS = 8


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that one request may ask for.

    max_body_bytes       bytes of a request body, chunked or not (413 past it)
    max_prompts          prompts in one completion request
    max_sequences        prompts x max(n, best_of): sequences one request may start
    max_logprobs         alternatives reported per token
    max_stops            stop strings, and stop token ids
    max_stop_chars       characters of one stop string
    max_logit_bias       entries of logit_bias
    max_messages         messages of a chat
    head_timeout_s       from the first byte of a request to the end of its headers
    body_timeout_s       silence allowed while a body arrives
    keep_alive_s         silence allowed between two requests of a connection
    """

    max_body_bytes: int = 8 << 20
    max_prompts: int = 128
    max_sequences: int = 128
    max_logprobs: int = 20
    max_stops: int = 16
    max_stop_chars: int = 256
    max_logit_bias: int = 1024
    max_messages: int = 4096
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"limit {name} must be above 0 and finite, got {value}")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """`port` 0 lets the system choose; `port_file` receives the number once the socket is bound.

    Without `api_keys` everybody who reaches the port may call. `drain_s` bounds the wait for running requests after
    the first SIGTERM. `cors_origins` empty leaves browsers of other origins out.
    `reasoning` says whether what a model writes between tags of reasoning is told apart where its template names them.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    port_file: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    drain_s: float = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reasoning: Literal["auto", "off"] = "auto"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain_s must be at least 0, got {self.drain_s}")
        for key in self.api_keys:
            if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    f"an API key must be at least {MIN_KEY_CHARS} printable ASCII characters without spaces",
                    hint="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
        for origin in self.cors_origins:
            if origin != "*" and "://" not in origin:
                raise ConfigError(f"CORS origin {origin!r} must be '*' or like https://example.org")

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK_HOSTS or self.host.startswith("127.")
