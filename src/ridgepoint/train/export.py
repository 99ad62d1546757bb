"""A trained model as a Hugging Face folder of family `glm4_moe`: plain bfloat16, or int8 matrices with a scale per row.

Decides names, files and the storage scheme (`compressed-tensors`, weights only, symmetric, per channel). Knows nothing
of runs. Invariant: what is written loads in `transformers` as it is, and the int8 folder is the bf16 one rounded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ridgepoint.train.checkpoint import write_atomically
from ridgepoint.train.network import EMBED, HEAD, Parameters
from ridgepoint.train.recipe import ModelTable
from ridgepoint.train.vocabulary import end_id, write_tokenizer

Storage = Literal["float32", "bfloat16", "int8"]
_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
                "observer": "minmax",
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": [],
}


def hugging_face_config(model: ModelTable, vocab_size: int, eos_id: int, storage: Storage) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.dense_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "partial_rotary_factor": model.rotary_frac,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_qk_norm": True,
        "moe_intermediate_size": model.expert_width,
        "n_routed_experts": model.num_experts,
        "num_experts_per_tok": model.top_k,
        "n_shared_experts": model.num_shared_experts,
        "first_k_dense_replace": model.num_dense_layers,
        "routed_scaling_factor": model.routed_scale,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "tie_word_embeddings": model.tied_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "dtype": "float32" if storage == "float32" else "bfloat16",
    }
    if storage == "int8":
        # the router's matrix and the embedding are no Linear modules; they stay in plain numbers
        config["quantization_config"] = _QUANTIZATION
    return config


def hugging_face_tensors(model: ModelTable, params: Parameters, biases: Parameters) -> dict[str, Tensor]:
    """The flat dict of training under the names of published `glm4_moe` checkpoints: fused matrices apart again."""
    heads, groups = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    out: dict[str, Tensor] = {}
    for name, tensor in params.items():
        tensor = tensor.detach()
        if name.endswith("qkv_proj.weight"):
            for part, rows in zip("qkv", tensor.split((heads, groups, groups)), strict=True):
                out[name.replace("qkv_proj", f"{part}_proj")] = rows
        elif name.endswith("experts.gate_up_proj"):
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                at = name.removesuffix("gate_up_proj") + f"{expert}."
                out[at + "gate_proj.weight"], out[at + "up_proj.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            for expert, matrix in enumerate(tensor):
                out[name.removesuffix("down_proj") + f"{expert}.down_proj.weight"] = matrix
        elif name.endswith("gate_up_proj.weight"):
            gate, up = tensor.chunk(2)
            out[name.replace("gate_up_proj", "gate_proj")] = gate
            out[name.replace("gate_up_proj", "up_proj")] = up
        else:
            out[name] = tensor
    return out | biases


def _is_linear(name: str) -> bool:
    return name == HEAD or (name.endswith("_proj.weight"))


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
    params: Parameters,
    biases: Parameters,
    tokenizer: Tokenizer,
    storage: Storage,
    card: str,
) -> int:
    """Write the folder (config, generation config, tokenizer, weights, card); returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    eos = end_id(tokenizer)
    config = hugging_face_config(model, params[EMBED].shape[0], eos, storage)
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
    tensors = stored_tensors(hugging_face_tensors(model, params, biases), storage)
    write_atomically({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"}, weights)
    weights.chmod(0o644)  # the writer leaves it readable by its owner alone
    return weights.stat().st_size


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
