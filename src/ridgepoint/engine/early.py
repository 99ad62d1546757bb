"""Has the disk deliver kept weights while torch is still being imported: each takes a second or more, and neither needs the other."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from ridgepoint.engine.options import DTYPES, EngineOptions
from ridgepoint.kernels import native
from ridgepoint.models.kept import cache_folder, fetch


def dtype_name(options: EngineOptions, config: dict[str, object]) -> tuple[str, str]:
    """The type that weights and activations have, and why."""
    if options.dtype is not None:
        return options.dtype, "as asked"
    stored = config.get("dtype", config.get("torch_dtype"))
    if isinstance(stored, str) and stored in DTYPES:
        return stored, "the checkpoint's"
    return "bfloat16", "the checkpoint names none"


def fetch_early(options: EngineOptions) -> threading.Thread | None:
    """Start it, where there may be something to fetch."""
    cache, folder = cache_folder(options.weight_cache), Path(options.model).expanduser()
    if options.echo is not None or options.device not in (None, "cpu") or cache is None or not native.available():
        return None
    try:
        config = json.loads((folder / "config.json").read_bytes())
        form = options.weight_format or native.whole_format(dtype_name(options, config)[0])
    except (OSError, ValueError, AttributeError):
        return None  # a hub id, or a folder that the load will refuse
    thread = threading.Thread(target=fetch, args=(folder, form, cache), name="weight-fetch", daemon=True)
    thread.start()
    return thread
