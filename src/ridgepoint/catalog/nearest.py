"""What somebody may have meant by a name that is not known: for the hint of an error, never to choose for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6  # below it a resemblance of names is chance


def nearest(name: str, known: Iterable[str], limit: int = 8) -> list[str]:
    """At most `limit` of `known`, likest first; when nothing resembles `name`, the first by the alphabet."""
    asked = _plain(name)
    likeness = {key: _likeness(asked, _plain(key)) for key in known}
    near = [key for key in likeness if likeness[key] >= _ALIKE]
    return sorted(near, key=lambda key: (-likeness[key], key))[:limit] or sorted(likeness)[:limit]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _likeness(asked: str, key: str) -> float:
    """The share of letters in common order; at least alike where one contains the other, and more the more of it."""
    letters = SequenceMatcher(None, asked, key).ratio()
    if not asked or (asked not in key and key not in asked):
        return letters
    return max(letters, _ALIKE + 0.3 * min(len(asked), len(key)) / max(len(asked), len(key)))
