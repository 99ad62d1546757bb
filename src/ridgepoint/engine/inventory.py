"""What can be served without fetching anything: the embedded model and the hub cache, each with the loader's verdict.

Reads config.json and file sizes only. The verdict is the families' own: what they refuse is shown with their reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ridgepoint.catalog.families import FAMILIES, read_checkpoint_config
from ridgepoint.engine.source import EMBEDDED, cached_models, embedded_folder, read_config
from ridgepoint.errors import CheckpointError, MissingExtraError


def inventory() -> dict[str, Any]:
    """`{"models": [...], "families": [...]}`, plain data."""
    found: list[dict[str, Any]] = []
    embedded = embedded_folder()
    if embedded is not None:
        found.append(describe(EMBEDDED, "embedded", embedded))
    try:
        cached = cached_models()
    except MissingExtraError:
        cached = []  # without the library there is no cache to speak of
    found += [describe(name, "hub cache", folder) for name, folder in cached]
    return {"models": found, "families": sorted(FAMILIES)}


def describe(name: str, kind: str, folder: Path) -> dict[str, Any]:
    reason: str | None = None
    model_type: str | None = None
    try:
        config = read_config(folder)
        model_type = config.get("model_type")
        read_checkpoint_config(config)
    except CheckpointError as error:
        reason = str(error)
    weights = list(folder.glob("*.safetensors"))
    if reason is None and not weights:
        reason = "its weights are not here"
    return {
        "name": name,
        "kind": kind,
        "folder": str(folder),
        "model_type": model_type,
        "weights_bytes": sum(path.stat().st_size for path in weights),
        "served": reason is None,
        "reason": reason,
    }
