"""Checkpoints of a run: one safetensors file a checkpoint, everything that the next step reads. Never pickle.

Decides the file format and its atomicity. Invariant: a file with a checkpoint's name is whole (written aside, synced,
renamed), and a run resumed from it makes the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ridgepoint.errors import TrainingError
from ridgepoint.models.decoder import Decoder
from ridgepoint.train.weights import correction_biases

# Tensors were once named as in published checkpoints, with fused matrices; these rules, in order, give the decoder's names.
_FORMER_NAMES = (
    ("model.embed_tokens.", "embed."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.", "layers."),
    (".input_layernorm.", ".mixer_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".self_attn.", ".mixer."),
    (".mlp.gate.e_score_correction_bias", ".ffn.router.correction_E"),
    (".mlp.gate.", ".ffn.router."),
    (".mlp.experts.gate_up_proj", ".ffn.experts.w_gate_up_E2FD"),
    (".mlp.experts.down_proj", ".ffn.experts.w_down_EDF"),
    (".mlp.shared_experts.", ".ffn.shared.ffn."),
    (".mlp.", ".ffn."),
    ("_proj.weight", ".weight"),
)


def write_atomically(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """The file appears whole or not at all, also across a power cut. Raises `TrainingError` (a full disk, say)."""
    aside = path.with_name(path.name + ".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.rename(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def stored_names(keys: Iterable[str]) -> dict[str, str]:
    """What a checkpoint's tensors are called today, and what the file calls them."""
    names = {}
    for stored in keys:
        name = stored
        for former, current in _FORMER_NAMES:
            name = name.replace(former, current)
        names[name] = stored
    return names


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    masters: Decoder,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """`state` is plain JSON (recipe's hash, data cursors, counters). The `keep` newest checkpoints stay."""
    tensors = {f"bias.{name}": tensor for name, tensor in correction_biases(masters).items()}
    for name, master in masters.named_parameters():
        tensors[f"master.{name}"] = master.detach()
        for key, value in optimizer.state[master].items():
            tensors[f"adamw.{key}.{name}"] = value
    tensors["rng"] = torch.get_rng_state()
    path = folder / f"step-{step:08d}.safetensors"
    write_atomically(tensors, {"state": json.dumps({**state, "step": step})}, path)
    for old in checkpoint_paths(folder)[:-keep]:
        old.unlink()
    return path


def load_weights(path: Path, masters: Decoder) -> dict[str, Any]:
    """Fill masters and correction biases in place; returns the JSON state."""
    wanted = {f"master.{name}": parameter.detach() for name, parameter in masters.named_parameters()}
    wanted |= {f"bias.{name}": tensor for name, tensor in correction_biases(masters).items()}
    with safe_open(path, framework="pt") as file:
        stored = stored_names(file.keys())
        for name, tensor in wanted.items():
            if name not in stored:
                raise TrainingError(f"checkpoint {path} has no tensor {name!r}")
            tensor.copy_(file.get_tensor(stored[name]))
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    return state


def load_checkpoint(path: Path, *, masters: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`load_weights`, with the optimiser and the random state."""
    state = load_weights(path, masters)
    with safe_open(path, framework="pt") as file:
        stored = stored_names(file.keys())
        for name, master in masters.named_parameters():
            kept = {key: stored.get(f"adamw.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[master] = {key: file.get_tensor(at) for key, at in kept.items() if at is not None}
        torch.set_rng_state(file.get_tensor("rng"))
    return state
