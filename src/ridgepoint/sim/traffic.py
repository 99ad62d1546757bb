"""Who arrives when, wanting what. Made from a rate and lengths, or given; the same seed makes the same traffic."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request. Its prompt is `shared_tokens` of the text named `shared`, then tokens of its own."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    shared: int = 0
    shared_tokens: int = 0

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ConfigError(f"an arrival needs a time from 0 on and at least one token in and out, got {self}")
        if not 0 <= self.shared_tokens <= self.prompt_tokens:
            raise ConfigError(f"shared_tokens {self.shared_tokens} is not within the prompt's {self.prompt_tokens}")


def poisson(
    *,
    requests_per_s: float,
    num_requests: int,
    prompt_tokens: int,
    output_tokens: int,
    spread: float = 0.0,
    shared_frac: float = 0.0,
    num_shared: int = 1,
    seed: int = 0,
) -> list[Arrival]:
    """Independent arrivals. Lengths are uniform within `spread` of their means; the first `shared_frac` of each prompt is
    one of `num_shared` common texts."""
    for name, value, fits, allowed in (
        ("rate", requests_per_s, 0 < requests_per_s < math.inf, "positive and finite"),
        ("requests", num_requests, num_requests >= 1, "at least 1"),
        ("prompt_tokens", prompt_tokens, prompt_tokens >= 1, "at least 1"),
        ("output_tokens", output_tokens, output_tokens >= 1, "at least 1"),
        ("spread", spread, 0 <= spread < 1, "in [0, 1)"),
        ("shared_frac", shared_frac, 0 <= shared_frac <= 1, "in [0, 1]"),
        ("num_shared", num_shared, num_shared >= 1, "at least 1"),
    ):
        if not fits:
            raise ConfigError(f"{name} must be {allowed}, got {value:g}")
    rng = random.Random(seed)
    arrivals, now_s = [], 0.0
    for _ in range(num_requests):
        now_s += rng.expovariate(requests_per_s)
        prompt = max(1, round(prompt_tokens * rng.uniform(1 - spread, 1 + spread)))
        output = max(1, round(output_tokens * rng.uniform(1 - spread, 1 + spread)))
        arrivals.append(
            Arrival(
                at_s=now_s, prompt_tokens=prompt, output_tokens=output, shared=rng.randrange(num_shared),
                shared_tokens=min(prompt, round(prompt_tokens * shared_frac)),
            )
        )  # fmt: skip
    return arrivals


def prompt_ids(arrival: Arrival, number: int) -> list[int]:
    """Token ids that are equal exactly where prompts share text. Only equality matters to a scheduler."""
    shared = [-1 - arrival.shared] * arrival.shared_tokens
    return shared + [number] * (arrival.prompt_tokens - arrival.shared_tokens)


def busy_span_s(arrivals: Sequence[Arrival]) -> float:
    return arrivals[-1].at_s - arrivals[0].at_s if len(arrivals) > 1 else 0.0
