"""One sequence on its way: the tokens it has, how many of them are computed, and the blocks that hold their KV.

There is no phase. `tokens` holds prompt and output; the first `num_computed` of them have their KV in `blocks`, and the
scheduler closes the gap. When the last token's logits are there, one more token is sampled and the gap is 1 again.
Only the scheduler writes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ridgepoint.sched.params import SamplingParams
from ridgepoint.sched.prefix import block_key, form_key

UNKNOWN = -1  # a token whose step is launched and not yet read


class Request:
    """`seed` is resolved (never None); `root` is the prefix chain's root for this request's tenant. `whole_runs`: for each of
    these numbers, the model computes the prompt's whole runs of so many tokens in one form and all later tokens in another.
    `constraint` is the sampler's: what may follow; None is anything."""

    __slots__ = (
        "admitted_s", "arrival", "arrived_s", "blocks", "cached_tokens", "constraint", "finish_reason", "id", "keys", "num_computed",
        "num_keyed", "num_preemptions", "num_prompt", "num_scored", "params", "root", "row", "seed", "stop_ids", "tokens", "whole_runs",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        root: bytes = b"",
        whole_runs: tuple[int, ...] = (),
        eos_ids: Sequence[int] = (),
        arrived_s: float = 0.0,
        constraint: Any = None,
    ) -> None:
        self.id = request_id
        self.params = params
        self.constraint = constraint
        self.seed = seed
        self.root = root
        self.whole_runs = whole_runs
        self.arrived_s = arrived_s
        self.stop_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        self.tokens: list[int] = list(prompt_ids)
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.num_scored = 1 if params.prompt_logprobs is not None else self.num_prompt  # prompt tokens with logprobs
        self.blocks: list[int] = []
        self.keys: list[bytes] = []  # of the full blocks of `tokens`, as far as they were needed
        self.num_keyed = 0  # leading blocks whose keys were offered to the index
        self.arrival = -1  # order of arrival, which is priority
        self.row = -1  # a number below max_num_seqs while running: the executor's per-sequence arrays
        self.num_preemptions = 0
        self.cached_tokens = 0  # prompt tokens that were not computed, on first admission
        self.admitted_s: float | None = None
        self.finish_reason: str | None = None

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_wanted(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def has_all_tokens(self) -> bool:
        """It can grow no further; while it is in flight its last token is still `UNKNOWN`."""
        return self.num_output >= self.params.max_tokens

    def block_keys(self, count: int, block_tokens: int) -> list[bytes]:
        """Keys of the first `count` blocks, which must be full of known tokens."""
        keys = self.keys
        while len(keys) < count:
            place = len(keys)
            parent = keys[-1] if keys else self.root
            for run in self.whole_runs:
                rest = self.num_prompt // run * run  # the first token in the other form
                if place == rest // block_tokens:
                    parent = form_key(parent, run, rest)
            keys.append(block_key(parent, self.tokens[place * block_tokens : (place + 1) * block_tokens]))
        return keys if len(keys) == count else keys[:count]

    def reason_to_stop(self, place: int) -> str | None:
        """Why `tokens[place]`, just sampled, is the last, if it is. The sampler keeps stop ids away before `min_tokens`."""
        num_output = place + 1 - self.num_prompt
        if num_output >= self.params.min_tokens and self.tokens[place] in self.stop_ids:
            return "stop"
        return "length" if num_output >= self.params.max_tokens else None
