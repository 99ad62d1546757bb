"""A day of a fleet: how many nodes its tokens keep busy, what they cost, and what the tokens would earn at a price list.

Rates are means over the day, so the nodes are too: what a fleet needs at its busiest hour is for `queueing` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.errors import ConfigError

DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class DailyTokens:
    """Input split by whether the prefix cache had it; output as written."""

    input_hit: float
    input_miss: float
    output: float

    @property
    def input(self) -> float:
        return self.input_hit + self.input_miss

    @property
    def hit_frac(self) -> float:
        return self.input_hit / self.input


def mean_nodes(tokens_per_day: float, tokens_per_s_per_node: float) -> float:
    """Nodes that this many tokens keep busy around the clock."""
    if not tokens_per_s_per_node > 0:
        raise ConfigError(f"a node's rate must be positive, got {tokens_per_s_per_node:g} tokens/s")
    return tokens_per_day / DAY_S / tokens_per_s_per_node


def tokens_per_day(nodes: float, tokens_per_s_per_node: float) -> float:
    """Tokens that `nodes` nodes make in a day: the inverse of `mean_nodes`."""
    return nodes * tokens_per_s_per_node * DAY_S


def usd_per_day(nodes: float, *, chips_per_node: int, usd_per_chip_hour: float) -> float:
    return nodes * chips_per_node * 24.0 * usd_per_chip_hour


def revenue_usd(tokens: DailyTokens, *, usd_hit: float, usd_miss: float, usd_output: float) -> float:
    """At list prices in USD per million tokens."""
    return (tokens.input_hit * usd_hit + tokens.input_miss * usd_miss + tokens.output * usd_output) / 1e6


def margin(revenue: float, cost: float) -> float:
    """Profit over cost."""
    return (revenue - cost) / cost
