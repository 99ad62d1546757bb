"""POST /v1/completions: prompts to texts, with OpenAI's rules for n, best_of, echo and logprobs.

Choice i answers prompt i // n. `echo` puts the prompt (and its log-probabilities) in front; the first prompt token has
none. The joined `tokens` of the logprobs are the joined text, whole UTF-8 characters permitting; an end-of-sequence
token is not listed, because it is not text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from ridgepoint.engine.protocol import TokenLogprobs
from ridgepoint.engine.text import TextRules, TextStream, TokenBytes
from ridgepoint.errors import RequestError
from ridgepoint.server.generate import Piece, Wanted
from ridgepoint.server.job import Job, token_name, top_pairs
from ridgepoint.server.params import check_sequences, completion_sampling
from ridgepoint.server.prompts import Prompt, encode_prompt, split_prompts
from ridgepoint.server.replies import Completion, CompletionChoice, CompletionLogprobs
from ridgepoint.server.schema import CompletionRequest
from ridgepoint.server.service import Service, tenant_salt
from ridgepoint.server.structure import grammar_of


async def start_completion(service: Service, request: CompletionRequest, key: str | None) -> CompletionJob:
    """Check everything, then submit. `key` is the caller's API key, which separates prefix caches."""
    arrived_s = time.monotonic()
    service.check(request)
    num_shown = request.n or 1
    per_prompt = num_shown if request.best_of is None else request.best_of
    if per_prompt < num_shown:
        raise RequestError(f"best_of {per_prompt} is below n {num_shown}", param="best_of", code="invalid_value")
    if request.stream and per_prompt > num_shown:
        raise RequestError("best_of above n cannot be streamed", param="best_of", code="invalid_value")
    limits, capacity = service.config.limits, service.capacity
    texts = split_prompts(request.prompt)
    check_sequences(len(texts), per_prompt, limits)
    grammar = await grammar_of(request)
    prompts: list[Prompt] = []
    wanted: list[Wanted] = []
    salt = tenant_salt(key, request.cache_salt)
    for text in texts:
        prompt = await encode_prompt(
            text, service.tokenizer, capacity, add_special_tokens=request.add_special_tokens is not False
        )
        prompts.append(prompt)
        sampling = completion_sampling(request, len(prompt.ids), capacity, limits, rank=per_prompt > num_shown)
        wanted += sampling.choices(prompt.ids, per_prompt, salt, grammar)
    return CompletionJob(service, request, prompts, wanted, arrived_s)


class CompletionJob(Job):
    """A running completion; read it once, by `collect` or by `events`."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
        wanted: Sequence[Wanted],
        arrived_s: float,
    ) -> None:
        self._request = request
        self._num_prompts = len(prompts)
        self._per_prompt = len(wanted) // len(prompts)
        prompt_of = [index // self._per_prompt for index in range(len(wanted))]
        super().__init__(service, request, wanted, prompt_of, prefix="cmpl", arrived_s=arrived_s)
        self._writers = [
            _Writer(service.tokenizer.tokens, request, prompts[prompt], skip_special=one.rules.skip_special)
            for prompt, one in zip(prompt_of, wanted, strict=True)
        ]

    async def collect(self) -> Completion:
        written: list[list[tuple[str, CompletionLogprobs | None]]] = [[] for _ in self.generations]
        scores: list[list[float]] = [[] for _ in self.generations]
        async for index, piece in self.pieces():
            written[index].append(self._writers[index].write(piece))
            scores[index] += [token.logprobs.logprob for token in piece.tokens if token.logprobs is not None]
        choices: list[CompletionChoice] = []
        for index in self._shown(scores):
            choices.append(
                CompletionChoice(
                    text="".join(text for text, _ in written[index]),
                    index=len(choices),
                    logprobs=_join(logprobs for _, logprobs in written[index]),
                    finish_reason=self.finish_of(index),
                )
            )
        return Completion(**self.envelope, choices=choices, usage=self.usage())

    def chunks(self, index: int, piece: Piece) -> Iterator[Completion]:
        text, logprobs = self._writers[index].write(piece)
        choice = CompletionChoice(text=text, index=index, logprobs=logprobs, finish_reason=piece.finish_reason)
        yield Completion(**self.envelope, choices=[choice], usage=self.chunk_usage)

    def last_chunk(self) -> Completion:
        return Completion(**self.envelope, choices=[], usage=self.usage())

    def _shown(self, scores: list[list[float]]) -> Iterable[int]:
        """Of each prompt's sequences the `n` with the best mean log-probability per token, in order of merit."""
        num_shown = self._request.n or 1
        for prompt in range(self._num_prompts):
            indices = range(prompt * self._per_prompt, (prompt + 1) * self._per_prompt)
            if num_shown == self._per_prompt:
                yield from indices
                continue
            merit = {index: sum(scores[index]) / max(1, len(scores[index])) for index in indices}
            yield from sorted(indices, key=lambda index: (-merit[index], index))[:num_shown]


# ---------------------------------------------------------------- writing one sequence


class _Writer:
    """Pieces of one sequence to the text and logprobs of its choice, the echoed prompt first."""

    def __init__(self, tokens: TokenBytes, request: CompletionRequest, prompt: Prompt, *, skip_special: bool) -> None:
        self._tokens = tokens
        self._wants_logprobs = request.logprobs is not None
        self._num_top = request.logprobs or 0
        self._skip_special = skip_special
        self._prompt = prompt
        self._echo_due = bool(request.echo)
        self._offset = 0  # characters before the output

    def write(self, piece: Piece) -> tuple[str, CompletionLogprobs | None]:
        text = piece.text
        rows: list[tuple[int, int, TokenLogprobs | None]] = []  # (token id, text offset, logprobs)
        if self._echo_due:
            self._echo_due = False
            prompt_text = self._prompt_text()
            text = prompt_text + text
            self._offset = len(prompt_text)
            if self._wants_logprobs:
                rows += self._prompt_rows(piece.prompt_logprobs or [])
        if not self._wants_logprobs:
            return text, None
        rows += [(token.token_id, self._offset + token.start, token.logprobs) for token in piece.tokens]
        return text, self._logprobs(rows)

    def _prompt_text(self) -> str:
        if self._prompt.text is not None:
            return self._prompt.text
        return self._tokens.text(self._prompt.ids, skip_special=self._skip_special)

    def _prompt_rows(self, logprobs: Sequence[TokenLogprobs | None]) -> Iterable[tuple[int, int, TokenLogprobs | None]]:
        ids = self._prompt.ids
        stream = TextStream(self._tokens, TextRules(skip_special=self._skip_special))
        starts = [start for token_id in ids for start in stream.push(token_id).token_starts]
        starts += stream.finish().token_starts
        # A tokenizer that puts a space in front of the text makes its own text that much longer than the caller's.
        surplus = max(0, len(self._tokens.text(ids, skip_special=self._skip_special)) - len(self._prompt_text()))
        padded = [*logprobs, *[None] * (len(ids) - len(logprobs))]
        return zip(ids, (max(0, start - surplus) for start in starts), padded, strict=True)

    def _logprobs(self, rows: Sequence[tuple[int, int, TokenLogprobs | None]]) -> CompletionLogprobs:
        return CompletionLogprobs(
            text_offset=[offset for _, offset, _ in rows],
            token_logprobs=[None if logprobs is None else logprobs.logprob for _, _, logprobs in rows],
            tokens=[token_name(self._tokens, token_id) for token_id, _, _ in rows],
            top_logprobs=[self._top(logprobs) for _, _, logprobs in rows] if self._num_top else None,
        )

    def _top(self, logprobs: TokenLogprobs | None) -> dict[str, float] | None:
        """The alternatives, and the chosen token itself even where it is not among the best, as OpenAI does."""
        if logprobs is None:
            return None
        top = {token_name(self._tokens, token_id): value for token_id, value in reversed(top_pairs(logprobs))}
        top = dict(reversed(top.items()))  # of two tokens with one spelling the likelier stays
        top.setdefault(token_name(self._tokens, logprobs.token_id), logprobs.logprob)
        return top


def _join(parts: Iterable[CompletionLogprobs | None]) -> CompletionLogprobs | None:
    found = [part for part in parts if part is not None]
    if not found:
        return None
    assert all((first.top_logprobs is None) == (second.top_logprobs is None) for first, second in pairwise(found))
    tops = [part.top_logprobs for part in found]
    return CompletionLogprobs(
        text_offset=[offset for part in found for offset in part.text_offset],
        token_logprobs=[value for part in found for value in part.token_logprobs],
        tokens=[token for part in found for token in part.tokens],
        top_logprobs=None if tops[0] is None else [entry for top in tops for entry in top or []],
    )
