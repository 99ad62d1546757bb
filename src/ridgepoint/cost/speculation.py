"""Speculative decoding as arithmetic: how many tokens a verification yields, and when drafting pays.

Drafting k tokens and verifying them in one step of 1+k tokens yields the accepted prefix plus one. The step costs more compute
and, in a sparse model, touches more experts; where decode is bandwidth-bound that is nearly free, past the ridge it is not.
Knows no drafter: the draft's own seconds are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgepoint.cost.arrays import Num
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """`curve[i]` is the probability that draft token i is right given that all before it were."""

    curve: tuple[float, ...]

    def __post_init__(self) -> None:
        for probability in self.curve:
            if not 0 <= probability <= 1:
                raise ConfigError(f"an acceptance is a probability in [0, 1], got {probability:g}")

    @classmethod
    def constant(cls, probability: float, length: int) -> Acceptance:
        if length < 0:
            raise ConfigError(f"draft length must not be negative, got {length}")
        return cls(curve=(probability,) * length)

    @property
    def length(self) -> int:
        return len(self.curve)

    @property
    def tokens_per_step(self) -> float:
        """1 (the verifier's own) + sum over i of the probability that the first i drafts are all right."""
        total, alive = 1.0, 1.0
        for probability in self.curve:
            alive *= probability
            total += alive
        return total


def seconds_per_token(verify_s: Num, draft_s: Num, acceptance: Acceptance) -> Num:
    """Seconds per emitted token of a loop that drafts for `draft_s` and verifies for `verify_s`."""
    return (verify_s + draft_s) / acceptance.tokens_per_step


def best_length(verify_s: Sequence[float], draft_token_s: float, curve: Sequence[float]) -> tuple[int, float]:
    """(draft length, seconds per token) with the least time, `verify_s[k]` being the seconds to verify k drafts (k from 0)."""
    options = [
        (seconds_per_token(step, k * draft_token_s, Acceptance(curve=tuple(curve[:k]))), k)
        for k, step in enumerate(verify_s) if k <= len(curve)
    ]  # fmt: skip
    seconds, length = min(options)
    return length, float(seconds)
