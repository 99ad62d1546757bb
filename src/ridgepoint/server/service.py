"""What the handlers share: the tokenizer, the engine, its state, and the rule by which work is admitted.

Decides loading / ok / draining / failed, and refuses work that the queue has no room for. Knows no HTTP beyond the
status of its refusals. Invariant: a request's sequences are all submitted, or none is.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from ridgepoint import __version__
from ridgepoint.engine.tokenizer import Tokenizer
from ridgepoint.errors import EngineError, RequestError
from ridgepoint.server.config import ServerConfig
from ridgepoint.server.generate import Engine, Generation, Wanted
from ridgepoint.server.harmony.marks import Marks, marks_of
from ridgepoint.server.metrics import Metrics
from ridgepoint.server.params import Capacity
from ridgepoint.server.reasoning.tags import Tags, tags_of
from ridgepoint.server.schema import GenerationFields

State = Literal["ok", "loading", "draining", "failed"]


class OverloadedError(RequestError):
    """429: come back in `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, status=429, code="queue_full", hint=f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Service:
    def __init__(self, config: ServerConfig, tokenizer: Tokenizer, engine: Engine) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self.metrics = Metrics(config.model_name)
        self.metrics.watch(engine)
        self.created = int(time.time())
        self.fingerprint = "rp_" + hashlib.sha256(f"{__version__}:{config.model_name}".encode()).hexdigest()[:12]
        self.draining = False
        self.loaded = False

    @cached_property
    def harmony(self) -> Marks | None:
        """Where the model writes harmony, its marks."""
        return marks_of(self.tokenizer)

    @cached_property
    def tags(self) -> Tags | None:
        """Where the model reasons between tags, and that is to be told apart, these."""
        return None if self.harmony is not None or self.config.reasoning == "off" else tags_of(self.tokenizer)

    @property
    def reasoning_note(self) -> str:
        """Whether reasoning is told apart from what is said, and why."""
        if self.harmony is not None:
            return "reasoning on: the chat template writes harmony's channels"
        if self.tags is not None:
            return f"reasoning on: the chat template has it between {self.tags.opening} and {self.tags.closing}"
        if self.config.reasoning == "off":
            return "reasoning off: it stays in the text, as asked for"
        has_template = self.tokenizer.chat_template is not None
        return "reasoning off: " + ("the chat template shows none" if has_template else "no chat template")

    @property
    def state(self) -> State:
        if self.draining:
            return "draining"
        if not self.loaded:
            return "loading"
        return "ok" if self.engine.alive else "failed"

    @property
    def capacity(self) -> Capacity:
        """What one sequence may hold: the context, or the whole KV memory where that is less."""
        ready = self.engine.ready
        kv_tokens = ready.num_blocks * ready.block_tokens + 1  # the last token is never fed back: it needs no KV
        return Capacity(vocab_size=ready.vocab_size, max_tokens=min(ready.max_context, kv_tokens))

    def check(self, request: GenerationFields) -> None:
        """What can be refused before a prompt is looked at."""
        self.check_ready()
        self.check_model(request.model)
        if request.stream_options is not None and not request.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options", code="invalid_value")

    def check_ready(self) -> None:
        """Raises 503 unless work can be taken."""
        state = self.state
        if state == "loading":
            raise RequestError("the model is still loading", status=503, code="loading", hint="watch /health")
        if state == "draining":
            raise RequestError("the server is shutting down", status=503, code="shutting_down")
        if state == "failed":
            raise EngineError(self.engine.failure or "its process has ended")

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.config.model_name:
            raise RequestError(
                f"the model {name[:200]!r} does not exist", status=404, param="model", code="model_not_found",
                hint=f"this server has {self.config.model_name!r}",
            )  # fmt: skip

    def submit(self, wanted: Sequence[Wanted], arrived_s: float) -> list[Generation]:
        """Submit all of a request's sequences, or none. No await in between: the room cannot change meanwhile."""
        self.check_ready()
        if len(wanted) > self.engine.room:
            num_ahead = len(wanted) - self.engine.room
            raise OverloadedError(
                f"the queue is full: {self.engine.in_flight} sequences are running or waiting, {len(wanted)} more were"
                " asked for",
                self.metrics.retry_after_s(num_ahead),
            )
        return [Generation(self.engine, self.tokenizer.tokens, one, arrived_s, self.metrics) for one in wanted]


class Keyring:
    """The API keys, as digests. Comparing takes the same time for every key and every attempt."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: str) -> bool:
        digest, found = _digest(key), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def tenant_salt(key: str | None, cache_salt: str | None) -> bytes:
    """What separates prefix caches: equal keys (and equal `cache_salt`s) share, all others cannot meet."""
    if key is None and cache_salt is None:
        return b""
    return hashlib.blake2b(
        f"{cache_salt or ''}".encode(), key=_digest(key or "")[:32], digest_size=16, person=b"prefix-cache"
    ).digest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
