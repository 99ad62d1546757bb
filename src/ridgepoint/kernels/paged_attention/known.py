"""What the host knows of a step's sequences when it launches the step, so that kernels without work need not be launched."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """No row of the step belongs to nobody, each sequence has at least `least_queries` new tokens, and none more than `most_cached`
    before them."""

    least_queries: int
    most_cached: int
