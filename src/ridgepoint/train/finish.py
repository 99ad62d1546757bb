"""From a run's newest checkpoint to folders that can be served: `bf16/` and `int8/` inside the run's folder.

Reads checkpoints only, so it works while the run goes on and never disturbs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from ridgepoint.errors import TrainingError
from ridgepoint.train.card import Provenance, model_card
from ridgepoint.train.checkpoint import checkpoint_paths
from ridgepoint.train.export import Storage, export
from ridgepoint.train.recipe import Recipe

FOLDERS: dict[Storage, str] = {"bfloat16": "bf16", "int8": "int8"}


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(masters, biases, state) of a checkpoint, without the optimiser."""
    masters: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
            for prefix, group in (("master.", masters), ("bias.", biases)):
                if name.startswith(prefix):
                    group[name.removeprefix(prefix)] = file.get_tensor(name)
        return masters, biases, json.loads(file.metadata()["state"])


def export_run(recipe: Recipe, folder: Path, evaluation: dict[str, float] | None = None) -> dict[str, Path]:
    """Write both folders of the newest checkpoint; returns them by name."""
    paths = checkpoint_paths(folder)
    if not paths:
        raise TrainingError(f"{folder} holds no checkpoint", hint="train first, or name the folder of a run")
    masters, biases, state = read_weights(paths[-1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    provenance = Provenance(
        python_version=state["python"],
        corpus_sha256=state["corpus_sha256"],
        recipe_sha256=state["recipe_sha256"],
        held_out_modules=tuple(state["held_out"]),
        step=state["step"],
    )
    written = {}
    for storage, name in FOLDERS.items():
        export(
            folder / name,
            model=recipe.model,
            params=masters,
            biases=biases,
            tokenizer=tokenizer,
            storage=storage,
            card=model_card(recipe, provenance, storage, evaluation),
        )
        written[name] = folder / name
    return written
