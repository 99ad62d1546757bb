"""Log-probabilities as they travel from the sampler to whoever asked: plain data, opaque to the scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probability of the chosen token and of the `top` alternatives, best first, before temperature and filters."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
