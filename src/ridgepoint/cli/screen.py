"""Where answers are printed: as wide as the terminal, and through a pipe as wide as they are.

A table that is folded into 80 columns hides its rows from grep and awk, so nothing is folded where nobody looks. COLUMNS,
where it is set, decides for tables in both cases. Sentences are wrapped between words, and on a terminal alone.
"""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

UNFOLDED = 10_000  # columns: more than any line has


class Screen(Console):
    """stdout. `soft_wrap` marks a sentence."""

    def __init__(self) -> None:
        super().__init__()
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNFOLDED

    def print(self, *objects: Any, soft_wrap: bool | None = None, **style: Any) -> None:
        super().print(*objects, soft_wrap=bool(soft_wrap) and not self.is_terminal, **style)
