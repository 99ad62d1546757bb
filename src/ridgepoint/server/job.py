"""One request's sequences while they run: identity, usage and the end of it, common to both endpoints.

Invariant: `aclose` is called once for every job, whatever happens; it cancels what still runs and accounts all of it.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from ridgepoint.engine.protocol import TokenLogprobs
from ridgepoint.engine.text import TokenBytes
from ridgepoint.server.errors import describe
from ridgepoint.server.generate import Generation, Piece, Wanted, merge
from ridgepoint.server.replies import CompletionTokensDetails, Finish, PromptTokensDetails, Usage
from ridgepoint.server.schema import GenerationFields
from ridgepoint.server.service import Service

DONE = b"data: [DONE]\n\n"


class Job(ABC):
    """`prompt_of[i]` is the index of the prompt that sequence i answers."""

    def __init__(
        self,
        service: Service,
        request: GenerationFields,
        wanted: Sequence[Wanted],
        prompt_of: Sequence[int],
        *,
        prefix: str,
        arrived_s: float,
    ) -> None:
        self.service = service
        self._wants_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self.prompt_of = prompt_of
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.generations: list[Generation] = service.submit(wanted, arrived_s)
        self._closed = False

    @property
    def envelope(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.service.config.model_name,
            "system_fingerprint": self.service.fingerprint,
        }

    def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        return merge(self.generations)

    def finish_of(self, index: int) -> Finish:
        """Why a sequence that has run to its end ended."""
        reason = self.generations[index].finish_reason
        return "length" if reason == "length" else "stop"

    @abstractmethod
    async def collect(self) -> msgspec.Struct:
        """The whole answer."""

    @abstractmethod
    def chunks(self, index: int, piece: Piece) -> Iterator[msgspec.Struct]:
        """What a stream says of one piece of sequence `index`."""

    @abstractmethod
    def last_chunk(self) -> msgspec.Struct:
        """What it says at its end to who asked for usage."""

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        begun = False
        try:
            async for index, piece in self.pieces():
                for chunk in self.chunks(index, piece):
                    yield _event(chunk)
                    begun = True
            if self._wants_usage:
                yield _event(self.last_chunk())
            yield DONE
        except Exception as error:
            if not begun:
                raise  # nothing was sent yet: the status can still say it
            yield _event(describe(error)[1])  # no [DONE] follows, so nobody takes it for whole

    @property
    def chunk_usage(self) -> msgspec.UnsetType | None:
        """Of every chunk but the last: null where usage was asked for, else not there."""
        return None if self._wants_usage else msgspec.UNSET

    def usage(self) -> Usage:
        """Each prompt counts once however many answers it got; its cached tokens are the best that any of them found."""
        prompt_tokens = dict[int, int]()
        cached_tokens = dict[int, int]()
        for prompt, generation in zip(self.prompt_of, self.generations, strict=True):
            prompt_tokens[prompt] = len(generation.wanted.prompt_ids)
            cached_tokens.setdefault(prompt, generation.cached_tokens)
        num_prompt = sum(prompt_tokens.values())
        scores_only = all(generation.wanted.params.max_tokens == 0 for generation in self.generations)
        num_output = 0 if scores_only else sum(generation.num_tokens for generation in self.generations)
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_output,
            total_tokens=num_prompt + num_output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached_tokens.values())),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(generation.reasoning_tokens for generation in self.generations)
            ),
        )

    def notes(self) -> dict[str, Any]:
        """For the access log."""
        usage = self.usage()
        return {
            "reply_id": self.id,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish": ",".join(sorted({generation.finish_reason or "abort" for generation in self.generations})),
        }

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        for generation in self.generations:
            await generation.aclose()
            self.service.metrics.ended(generation)


def _event(reply: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(reply) + b"\n\n"


def token_name(tokens: TokenBytes, token_id: int) -> str:
    """A token as the API spells it: its text, or `bytes:\\xe2\\x82` when it is no whole character."""
    raw = tokens.of(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def top_pairs(logprobs: TokenLogprobs) -> list[tuple[int, float]]:
    return [(int(token_id), value) for token_id, value in logprobs.top]
