"""A checkpoint folder written aside and put in place whole, or not at all.

Everything goes to a hidden folder beside the target; `commit` renames it. On an error, Ctrl-C or a full disk the hidden
folder is removed; one that a killed run left behind is removed by the next. An existing target is never touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ridgepoint.errors import CheckpointError, ConfigError

SHARD_BYTES = 1 << 30
_COPIED = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".md")
_COPIED_NAMES = ("LICENSE", "NOTICE")
_WRITTEN_HERE = ("config.json", "model.safetensors.index.json")


class CheckpointFolder:
    """`add` tensors in any order; a shard is written whenever enough of them have gathered."""

    def __init__(self, target: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.target, self._shard_bytes = target, shard_bytes
        self._gathered: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []
        self._gathered_bytes = self.num_bytes = 0
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> CheckpointFolder:
        if self.target.exists() or self.target.is_symlink():
            raise ConfigError(f"{self.target} exists and is not overwritten", hint="name a folder that does not exist")
        if not self.target.absolute().parent.is_dir():
            raise ConfigError(
                f"{self.target.absolute().parent} is no folder, so {self.target.name} cannot be put there"
            )
        self._remove_abandoned()
        self._aside = self._aside_named(str(os.getpid()))
        try:
            self._aside.mkdir()
            self._lock = _locked(self._aside)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
        shutil.rmtree(self._aside, ignore_errors=True)  # renamed by now if all went well
        if isinstance(error, OSError | SafetensorError):
            raise self._failed(error) from error

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """These tensors must not change any more."""
        for name, tensor in tensors.items():
            if self._gathered and self._gathered_bytes + tensor.nbytes > self._shard_bytes:
                self._write_shard()
            self._gathered[name] = tensor
            self._gathered_bytes += tensor.nbytes
            self.num_bytes += tensor.nbytes

    def copy_companions(self, source: Path) -> list[str]:
        """Tokenizer, templates, cards and licences; never weights, code or pickles."""
        copied = []
        for path in sorted(source.iterdir()):
            wanted = path.suffix in _COPIED or path.stem in _COPIED_NAMES
            if wanted and path.name not in _WRITTEN_HERE and not path.name.startswith(".") and path.is_file():
                shutil.copyfile(path, self._aside / path.name)
                copied.append(path.name)
        return copied

    def commit(self, config: dict[str, Any]) -> None:
        """Write the last shard, index and config, and put the folder in place."""
        self._write_shard()
        self._name_shards()
        _write_json(self._aside / "config.json", config)
        (self._aside / _LOCK).unlink()
        if self.target.exists():  # it was not when we began
            raise ConfigError(f"{self.target} appeared meanwhile and is not overwritten")
        self._aside.rename(self.target)

    def _write_shard(self) -> None:
        if not self._gathered:
            return
        path = self._aside / f"shard-{len(self._shards)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in self._gathered.items()}, path, {"format": "pt"})
        path.chmod(0o644)  # the writer leaves it readable by its owner alone
        self._shards.append(list(self._gathered))
        self._gathered, self._gathered_bytes = {}, 0

    def _name_shards(self) -> None:
        """The usual names, which hold the number of shards: one file alone needs no index."""
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._shards):
            final = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            (self._aside / f"shard-{i}.safetensors").rename(self._aside / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
            _write_json(self._aside / "model.safetensors.index.json", index)

    def _aside_named(self, process: str) -> Path:
        return self.target.absolute().with_name(f".{self.target.name}.partial-{process}")

    def _remove_abandoned(self) -> None:
        """Folders of runs that were killed: nobody holds their lock."""
        for folder in self.target.absolute().parent.glob(self._aside_named("*").name):
            try:
                lock = _locked(folder)
            except OSError:
                continue  # held by a run at work, or not ours to touch
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    def _failed(self, error: Exception) -> CheckpointError:
        reason = getattr(error, "strerror", None) or str(error)
        return CheckpointError(f"{self.target} cannot be written: {reason}", hint="nothing was left behind")


_LOCK = ".lock"


def _locked(folder: Path) -> IO[bytes]:
    file = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
