"""What one sequence may say next, asked before each of its draws.

Follows the sequence's tokens from where it last looked, so it neither knows nor cares how they were grouped into steps, or
whether their KV was lost and computed again. Knows the compiled grammar as an object with three calls; no tensors.
Invariant: a grammar that fails on the way (it became too expensive) allows nothing, and `failure` says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class MaskTotals:
    """Of all sequences since start."""

    masks: int = 0
    seconds: float = 0.0


class Constraint:
    """`matcher` is a compiled grammar at its beginning, this sequence's own; `param` the request's field that asked for it."""

    def __init__(self, matcher: Any, vocab_size: int, totals: MaskTotals, param: str) -> None:
        self.param = param
        self.failure: str | None = None
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._totals = totals
        self._num_seen = 0

    def banned(self, tokens: Sequence[int], num_prompt: int) -> np.ndarray:
        """Ids (int64) of the tokens that may not follow `tokens`, all of them known, of which the first are the prompt."""
        started_s = time.perf_counter()
        for place in range(num_prompt + self._num_seen, len(tokens)):
            self._matcher.consume_token(tokens[place])
            self._num_seen += 1
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self.failure = self._matcher.get_error()
            return np.arange(self._vocab_size)
        banned_N = np.flatnonzero(np.unpackbits(mask, count=self._vocab_size, bitorder="little") == 0)
        self._totals.masks += 1
        self._totals.seconds += time.perf_counter() - started_s
        return banned_N
