"""How many distinct experts a batch touches, and how uneven the ranks that hold them are.

Under uniform routing T tokens touch E (1 - (1 - K/E)^T) experts of a layer. Real routers are not uniform: popularity is
modelled as a geometric ladder whose spread `skew` is the ratio between the most popular expert's share and the mean, so
skew 1 is uniform. Stragglers: the busiest of `ranks` ranks sets the step, and the mean of a maximum of sums is above the mean.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ridgepoint.cost.arrays import Num, is_scalar, largest, log2, smallest
from ridgepoint.errors import ConfigError

_STEPS = 16


@lru_cache(maxsize=1024)
def _shares(num_experts: int, top_k: int, skew: float) -> tuple[tuple[float, float], ...]:
    """(probability that one token picks an expert, number of such experts) over a ladder of popularity with mean K/E."""
    mean = top_k / num_experts
    if skew == 1.0:
        return ((mean, float(num_experts)),)
    # Popularity falls exponentially with rank: share(x) ~ exp(-a x) on x in [0, 1]; a is set by max/mean = skew.
    low, high = 1e-9, 60.0
    for _ in range(60):
        a = 0.5 * (low + high)
        if a / (1 - np.exp(-a)) < skew:
            low = a
        else:
            high = a
    x = (np.arange(_STEPS) + 0.5) / _STEPS
    raw = np.exp(-low * x)
    share = np.minimum(1.0, mean * raw / raw.mean())
    return tuple((float(p), num_experts / _STEPS) for p in share)


def distinct_experts(num_experts: int, top_k: int, tokens: Num, skew: float = 1.0) -> Num:
    """Expected number of a layer's experts that `tokens` tokens touch, each token choosing `top_k` different ones."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k must be between 1 and the number of experts {num_experts}, got {top_k}")
    if skew < 1.0:
        raise ConfigError(f"routing skew is the busiest expert's load over the mean, so at least 1; got {skew:g}")
    hit: Num = 0.0
    for share, count in _shares(num_experts, top_k, float(skew)):
        hit = hit + count * (1.0 - (1.0 - share) ** tokens)
    return hit


def busiest_rank(ranks: Num, tokens: Num, num_experts: int, top_k: int, skew: float = 1.0) -> Num:
    """Load of the busiest of `ranks` expert ranks over the mean load (1 when there is one rank).

    Two causes: finite samples (token-expert pairs fall on ranks like balls into bins, a token's experts being distinct) and
    popularity (skew), which averages out over the E/ranks experts of a rank. Loads are near-normal, so the busiest lies as many
    deviations above the mean as the largest of `ranks` normal draws; that loads sum to a constant cancels out of it.
    """
    if is_scalar(ranks) and ranks <= 1:
        return 1.0
    pairs_per_rank = largest(tokens * top_k / ranks, 1e-9)
    experts_per_rank = largest(num_experts / ranks, 1.0)
    distinct = (num_experts - top_k) / max(num_experts - 1.0, 1.0)
    spread_of_experts = (skew - 1.0) ** 2 / 3.0  # variance of a ladder from 0 to about twice the mean, at skew 2
    variance = distinct / pairs_per_rank + spread_of_experts / experts_per_rank
    return smallest(1.0 + largest_of_normals(ranks) * variance**0.5, ranks * 1.0)


# Mean of the largest of 1, 2, 4, ... 2048 standard normal draws (the integral of x n phi(x) Phi(x)^(n-1)).
_LARGEST = (0.0, 0.5642, 1.0294, 1.4236, 1.7660, 2.0697, 2.3437, 2.5946, 2.8269, 3.0439, 3.2482, 3.4418)


def largest_of_normals(count: Num) -> Num:
    """In standard deviations, between the tabulated counts linear in log2(count)."""
    found = np.interp(log2(count), range(len(_LARGEST)), _LARGEST)
    return float(found) if is_scalar(count) else found
