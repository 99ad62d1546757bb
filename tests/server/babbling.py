"""Answers at random of a grammar, for tests of what it lets through."""

from __future__ import annotations

import random
from collections.abc import Collection

from ridgepoint.engine.grammar import Grammars
from ridgepoint.engine.protocol import Grammar

MOST_TOKENS = 3000


def babble(
    grammars: Grammars, grammar: Grammar, seed: int, *, num_ids: int, stops: Collection[int], often: int | None = None
) -> list[int]:
    """Ids up to a stop: at each step any that is allowed, but `often` in a fifth of the steps that allow it, to keep texts short."""
    rng = random.Random(seed)
    constraint = grammars.compile(grammar).result()
    ids: list[int] = []
    while True:
        banned = set(constraint.banned(ids, 0).tolist())
        assert constraint.failure is None and len(ids) < MOST_TOKENS
        allowed = [one for one in range(num_ids) if one not in banned]
        token = often if often in allowed and rng.random() < 0.2 else rng.choice(allowed)
        assert token is not None
        if token in stops:
            return ids
        ids.append(token)
