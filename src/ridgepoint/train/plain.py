"""An int8 folder back to plain bfloat16, for readers that know no `compressed-tensors` experts (`transformers` 5 does not).

    python -m ridgepoint.train.plain FOLDER OUT

Invariant: the numbers are exactly those the project's own loader computes from the int8 folder in bfloat16.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ridgepoint.errors import CheckpointError
from ridgepoint.train.checkpoint import write_atomically


def write_plain(folder: Path, out: Path) -> None:
    """Write `out`: the folder's config without its quantisation, its tokenizer, and its weights multiplied out."""
    config = json.loads((folder / "config.json").read_text())
    if config.pop("quantization_config", None) is None:
        raise CheckpointError(f"{folder} is not quantised")
    stored = load_file(folder / "model.safetensors")
    plain = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            tensor = (tensor.float() * stored[f"{name}_scale"].float()).to(torch.bfloat16)
        if not name.endswith("_scale"):
            plain[name] = tensor
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    write_atomically(plain, {"format": "pt"}, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m ridgepoint.train.plain FOLDER OUT")
    write_plain(Path(sys.argv[1]), Path(sys.argv[2]))
