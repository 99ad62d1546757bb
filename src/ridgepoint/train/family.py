"""The recipe's model as a member of a family that others know: `glm4_moe`, GLM-4.5's Mixture of Experts.

Decides what an exported `config.json` says. Training reads its own spec from that very config, so what was trained and
what is published cannot differ.
"""

from __future__ import annotations

from typing import Any, Literal

from ridgepoint.catalog.families import spec_from_config
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.train.recipe import ModelTable

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


def spec_of(model: ModelTable, vocab_size: int) -> ModelSpec:
    return spec_from_config(hugging_face_config(model, vocab_size, 0, "float32"))
