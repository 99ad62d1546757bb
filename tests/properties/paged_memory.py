"""An executor without a model that still reads and writes through block tables, so a wrong table is a wrong token.

Each block holds what was written to it: tokens, each with the form it was computed in. The next token is a hash of the tokens
read back through the table, so a block that was freed too early, shared wrongly or never computed changes what is generated.
"""

from __future__ import annotations

from hashlib import blake2b

from ridgepoint.sched.request import Request
from ridgepoint.sched.step import Batch, StepResult

VOCAB = 50


def next_token(context: list[int]) -> int:
    return int.from_bytes(blake2b(repr(context).encode(), digest_size=4).digest(), "little") % VOCAB


def generate_alone(prompt: list[int], max_tokens: int, stop_ids: frozenset[int], min_tokens: int = 0) -> list[int]:
    """What a request must produce whatever the company: the definition."""
    tokens = list(prompt)
    while True:
        token = next_token(tokens)
        if len(tokens) - len(prompt) < min_tokens and token in stop_ids:
            token = VOCAB  # outside the vocabulary, so never a stop id
        tokens.append(token)
        made = len(tokens) - len(prompt)
        if made >= max_tokens or (token in stop_ids and made >= min_tokens):
            return tokens[len(prompt) :]


def computed(request: Request, end: int) -> list[tuple[int, ...]]:
    """What the first `end` tokens are to be in memory: each beside, for every kind of run, whether a whole run holds it."""
    ends = [request.num_prompt - request.num_prompt % run for run in request.whole_runs]
    return [(request.tokens[position], *(position < whole for whole in ends)) for position in range(end)]


class PagedMemory:
    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.memory: list[list[tuple[int, ...] | None]] = [[None] * block_tokens for _ in range(num_blocks)]
        self.steps = 0

    def run(self, batch: Batch) -> StepResult:
        self.steps += 1
        size = self.block_tokens
        for segment in batch.segments:
            request, end = segment.request, segment.start + segment.num_tokens
            for position, cell in enumerate(computed(request, end)[segment.start :], segment.start):
                self.memory[request.blocks[position // size]][position % size] = cell
        sampled = []
        for segment in batch.segments:
            request, end = segment.request, segment.start + segment.num_tokens
            read = [self.memory[request.blocks[position // size]][position % size] for position in range(end)]
            assert read == computed(request, end), f"{request.id} reads {read}, has {computed(request, end)}"
            if segment.wants_sample:
                assert end == len(request.tokens)
                token = next_token(request.tokens)
                if request.num_output < request.params.min_tokens and token in request.stop_ids:
                    token = VOCAB
                sampled.append(token)
        return StepResult(token_ids=sampled, seconds=0.001)
