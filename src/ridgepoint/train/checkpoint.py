"""Checkpoints of a run: one safetensors file a checkpoint, everything that the next step reads. Never pickle.

Decides the file format and its atomicity. Invariant: a file with a checkpoint's name is whole (written aside, synced,
renamed), and a run resumed from it makes the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ridgepoint.errors import TrainingError


def write_atomically(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """The file appears whole or not at all, also across a power cut."""
    aside = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    aside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    masters: dict[str, Tensor],
    biases: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """`state` is plain JSON (recipe's hash, data cursors, counters). The `keep` newest checkpoints stay."""
    tensors = {f"master.{name}": tensor.detach() for name, tensor in masters.items()}
    tensors |= {f"bias.{name}": tensor for name, tensor in biases.items()}
    for name, master in masters.items():
        for key, value in optimizer.state[master].items():
            tensors[f"adamw.{key}.{name}"] = value
    tensors["rng"] = torch.get_rng_state()
    path = folder / f"step-{step:08d}.safetensors"
    write_atomically(tensors, {"state": json.dumps({**state, "step": step})}, path)
    for old in checkpoint_paths(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(
    path: Path, *, masters: dict[str, Tensor], biases: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Fill masters, biases and the optimiser in place; returns the JSON state."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        with torch.no_grad():
            for prefix, group in (("master.", masters), ("bias.", biases)):
                for name, tensor in group.items():
                    if prefix + name not in names:
                        raise TrainingError(f"checkpoint {path} has no tensor {prefix + name!r}")
                    tensor.copy_(file.get_tensor(prefix + name))
        for name, master in masters.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"adamw.{key}.{name}" in names]
            optimizer.state[master] = {key: file.get_tensor(f"adamw.{key}.{name}") for key in keys}
        torch.set_rng_state(file.get_tensor("rng"))
    return state
