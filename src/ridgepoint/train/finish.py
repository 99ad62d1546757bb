"""From a run's newest checkpoint to folders that can be served: `bf16/` and `int8/` inside the run's folder.

Reads checkpoints only, so it works while the run goes on and never disturbs it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from ridgepoint.errors import TrainingError
from ridgepoint.models.decoder import Decoder
from ridgepoint.train.card import Provenance, model_card
from ridgepoint.train.checkpoint import checkpoint_paths, load_weights
from ridgepoint.train.export import export
from ridgepoint.train.family import Storage, spec_of
from ridgepoint.train.recipe import Recipe

FOLDERS: dict[Storage, str] = {"bfloat16": "bf16", "int8": "int8"}


def export_run(recipe: Recipe, folder: Path, evaluation: dict[str, float] | None = None) -> dict[str, Path]:
    """Write both folders of the newest checkpoint; returns them by name."""
    paths = checkpoint_paths(folder)
    if not paths:
        raise TrainingError(f"{folder} holds no checkpoint", hint="train first, or name the folder of a run")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    masters = Decoder(spec_of(recipe.model, tokenizer.get_vocab_size()), torch.float32)
    state = load_weights(paths[-1], masters)
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
            decoder=masters,
            tokenizer=tokenizer,
            storage=storage,
            card=model_card(recipe, provenance, storage, evaluation),
        )
        written[name] = folder / name
    return written
