"""A trained model as a Hugging Face folder of family `glm4_moe`: plain bfloat16, or int8 matrices with a scale per row.

Decides files and how numbers are stored (`compressed-tensors`, weights only, symmetric, per channel). Knows nothing of
runs. Invariant: what is written loads in `transformers` as it is, and the int8 folder is the bf16 one rounded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ridgepoint.models.checkpoint import to_checkpoint
from ridgepoint.models.decoder import Decoder
from ridgepoint.train.checkpoint import write_atomically
from ridgepoint.train.family import Storage, hugging_face_config
from ridgepoint.train.recipe import ModelTable
from ridgepoint.train.vocabulary import end_id, write_tokenizer


def _is_linear(name: str) -> bool:
    return name == "lm_head.weight" or name.endswith("_proj.weight")


def quantise_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [O, I], bfloat16 scale [O, 1]): symmetric, the largest magnitude of a row at 127. The scale is rounded
    first, so the integers are nearest to the weight under the scale that will be read back."""
    scale_O1 = (weight_OI.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12).to(torch.bfloat16)
    return (weight_OI / scale_O1.float()).round().clamp(-127, 127).to(torch.int8), scale_O1


def stored_tensors(tensors: dict[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """Correction biases stay float32 in every storage, as `transformers` keeps them: they decide a choice."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if storage == "int8" and _is_linear(name):
            out[name], out[f"{name}_scale"] = quantise_rows(tensor.float())
        elif name.endswith("e_score_correction_bias") or storage == "float32":
            out[name] = tensor.float()
        else:
            out[name] = tensor.to(torch.bfloat16)
    return out


def export(
    folder: Path,
    *,
    model: ModelTable,
    decoder: Decoder,
    tokenizer: Tokenizer,
    storage: Storage,
    card: str,
) -> int:
    """Write the folder (config, generation config, tokenizer, weights, card); returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    eos = end_id(tokenizer)
    config = hugging_face_config(model, decoder.spec.vocab_size, eos, storage)
    _write_json(folder / "config.json", config)
    generation = {
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    _write_json(folder / "generation_config.json", generation)
    write_tokenizer(tokenizer, folder, model.max_context)
    (folder / "README.md").write_text(card)
    weights = folder / "model.safetensors"
    tensors = stored_tensors(to_checkpoint(decoder), storage)
    write_atomically({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"}, weights)
    weights.chmod(0o644)  # the writer leaves it readable by its owner alone
    return weights.stat().st_size


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
