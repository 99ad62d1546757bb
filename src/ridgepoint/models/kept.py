"""Where packed weights are kept between starts, and under which name; and having the disk deliver them early.

Knows names, not what is in a file. Imports no torch: a start asks here while torch is still being imported.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ridgepoint.errors import RidgepointError
from ridgepoint.models import identity
from ridgepoint.models.identity import Folder, look_at
from ridgepoint.models.packed_file import PackedFile

OFF = "off"
VARIABLE = "RIDGEPOINT_WEIGHT_CACHE"


def cache_folder(option: str | None) -> Path | None:
    """The folder named by the option or else by RIDGEPOINT_WEIGHT_CACHE; None for `off`; by default the user's cache."""
    named = option or os.environ.get(VARIABLE)
    if named == OFF:
        return None
    if named:
        return Path(named).expanduser()
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "ridgepoint" / "weights"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A checkpoint's weights in `format` (a packed one: of plain weights the one that keeps them whole), wanted from `cache`."""

    cache: Path
    folder: Folder
    format: str

    def path(self, content: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9.-]+", "-", self.folder.path.name)[:60]
        return self.cache / f"{readable}-{self.format}-{self.folder.outline}-{content[:16]}.packed"

    def kept(self, content: str = "*") -> Path | None:
        """A file with this content (or any that folders like this one may have), whatever its folder was called."""
        return next(self.cache.glob(f"*-{self.format}-{self.folder.outline}-{content[:16]}.packed"), None)


def fetch(folder: Path, form: str, cache: Path) -> Path | None:
    """Bring what is kept for a folder, if its dates are those noted, into the system's page cache, and return its path. Whatever
    is wrong is left for the load to say."""
    try:
        wanted = Wanted(cache=cache, folder=look_at(folder), format=form)
        content = identity.recall(wanted.folder, cache)
        path = None if content is None else wanted.kept(content)
        if path is not None:
            with PackedFile(path) as file:
                file.fetch()
        return path
    except RidgepointError:
        return None
