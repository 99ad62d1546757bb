"""Where a model's files are: the embedded default, a folder, or a hub id that is fetched into the local cache.

Decides that from the name alone and says which. Reads no weights. Only data files are fetched: no code, no pickles.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ridgepoint
from ridgepoint.catalog.families import read_checkpoint_config
from ridgepoint.errors import CheckpointError, ConfigError, MissingExtraError

EMBEDDED = "stdlib-moe"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """`name` is what clients call it; `reason` is for the person who started it."""

    folder: Path
    name: str
    kind: Literal["embedded", "folder", "hub"]
    reason: str


def embedded_folder() -> Path | None:
    """The folder of the model that ships with the package; None in a build without it."""
    folder = Path(ridgepoint.__file__).parent / "assets" / EMBEDDED
    return folder if (folder / "config.json").is_file() else None


def find_model(model: str | None, *, revision: str | None = None) -> ModelSource:
    """Resolve what the user typed; None and the embedded model's name mean the embedded one.

    The architecture is read here too, so that a model nobody can run is refused before anything is started.
    """
    source = _locate(model, revision)
    read_checkpoint_config(read_config(source.folder))
    return source


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} must hold an object, got {type(config).__name__}")
    return config


def _locate(model: str | None, revision: str | None) -> ModelSource:
    if revision is not None and (model is None or not _HUB_ID.match(model) or Path(model).is_dir()):
        raise ConfigError("a revision can only be asked of a hub id", hint="for example Qwen/Qwen3-30B-A3B")
    if model is None or (model == EMBEDDED and not Path(model).exists()):
        folder = embedded_folder()
        if folder is None:
            raise CheckpointError("this build carries no embedded model", hint="name a folder or a hub id")
        return ModelSource(folder=folder, name=EMBEDDED, kind="embedded", reason="no model was named")
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} has no config.json", hint="name the folder that has it")
        return ModelSource(folder=path.resolve(), name=path.resolve().name, kind="folder", reason="a folder was named")
    if _HUB_ID.match(model) and not model.startswith((".", "~")):
        folder = _fetch(model, revision)
        return ModelSource(folder=folder, name=model, kind="hub", reason="a hub id was named")
    raise CheckpointError(
        f"no folder {model!r}, and it is no hub id", hint="a folder, or an id like Qwen/Qwen3-30B-A3B"
    )


def cached_models() -> list[tuple[str, Path]]:
    """(hub id, folder) of every model with a config.json in the local hub cache; empty without one."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "serve", "reading the hub cache") from error
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    found: list[tuple[str, Path]] = []
    for repository in cache.repos:
        if repository.repo_type == "model":
            for revision in sorted(repository.revisions, key=lambda one: one.last_modified, reverse=True)[:1]:
                if (revision.snapshot_path / "config.json").is_file():
                    found.append((repository.repo_id, revision.snapshot_path))
    return sorted(found)


def _fetch(hub_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "serve", "fetching a model from the hub") from error
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_FILES)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} is not in the local hub cache and the hub cannot be reached", hint="fetch it while online"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{hub_id} cannot be fetched: {str(error).splitlines()[0]}") from error
