"""Small random checkpoints of several families, written without `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import parity
from ridgepoint.catalog.families import spec_from_config
from ridgepoint.models.checkpoint import to_checkpoint
from ridgepoint.models.decoder import Decoder

# Groups of 32 divide every width, groups of 128 do not: the last group is short.
WIDE = {"hidden_size": 160, "intermediate_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {**parity.MOE, "head_dim": 16, "norm_topk_prob": True},
    "deepseek_v3": {**parity.ROUTED, **parity.MLA, "q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 16, "n_group": 2,
                    "topk_group": 1, "num_key_value_heads": 4, "qk_head_dim": 24, "rope_interleave": True,
                    "n_shared_experts": 1, "routed_scaling_factor": 1.0},
    "gpt_oss": {**parity.LOCAL, "head_dim": 16, "sliding_window": 12, **parity.rope("default", 150_000.0)},
    "granitemoe": {**parity.LOCAL, "tie_word_embeddings": True},
    "glm4_moe": {**parity.GLM, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "use_qk_norm": True},
}  # fmt: skip


def write(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, std: float = 0.05, **changes: Any) -> Path:
    """A folder with config, weights and a companion file."""
    config = {"model_type": family, **parity.BASE, **WIDE, "num_hidden_layers": 2, **FAMILIES[family], **changes}
    config = {key: value for key, value in config.items() if value is not None}
    decoder = Decoder(spec_from_config(config), dtype)
    decoder.initialise(seed=1, std=std)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "run.py").write_text("raise SystemExit")
    save_file({name: t.detach().clone() for name, t in to_checkpoint(decoder).items()}, folder / "model.safetensors")
    return folder
