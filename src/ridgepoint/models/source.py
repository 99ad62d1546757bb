"""From a folder or a hub id to checked files: the config, and the shard that holds each tensor.

Only data is fetched (json, safetensors, tokenizer and template files): no code is downloaded and none would be run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgepoint.errors import CheckpointError, MissingExtraError
from ridgepoint.models.safetensors_file import SafetensorsFile

FETCHED = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.tiktoken", "*.model"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint on disk: `files` maps each tensor to the file that holds it."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, SafetensorsFile]


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded first when it is a hub id and no such folder exists."""
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder with config.json and *.safetensors")
    name = str(path_or_hub_id)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a hub id (owner/name)")
    return _download(name, revision)


def read_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "config.json")


def open_source(folder: Path) -> Source:
    """Open every shard and check that each holds what the index says, and nothing twice."""
    config = read_config(folder)
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        return Source(folder=folder, config=config, files=_open_shards(folder, index))
    if single.exists():
        file = SafetensorsFile(single)
        return Source(folder=folder, config=config, files=dict.fromkeys(file.entries, file))
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    hint = f"{pickled[0]} is a pickle, which is never loaded; convert it to safetensors" if pickled else None
    raise CheckpointError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there", hint=hint)


def _open_shards(folder: Path, index: Path) -> dict[str, SafetensorsFile]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing")
    opened: dict[str, SafetensorsFile] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index}: tensor {tensor!r} is said to be in {shard!r}, which is no shard's name")
        if shard not in opened:
            if not (folder / shard).is_file():
                raise CheckpointError(f"{folder / shard} is missing: the index says it holds {tensor!r}")
            opened[shard] = SafetensorsFile(folder / shard)
        if tensor not in opened[shard].entries:
            raise CheckpointError(f"{folder / shard}: tensor {tensor!r} is missing: the index says it is here")
    for shard, file in opened.items():
        for tensor in file.entries:
            if weight_map.get(tensor) != shard:
                where = weight_map.get(tensor)
                raise CheckpointError(f"{file.path}: tensor {tensor!r} is here, but the index says {where!r}")
    return {tensor: opened[shard] for tensor, shard in weight_map.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, not an object")
    return value


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", "serve", "downloading a checkpoint") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # the hub client raises many kinds, its own and its transport's
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: cannot be downloaded: {type(error).__name__}: {first_line:.300}",
            hint="check the name and the network, or give the path of a folder",
        ) from None
