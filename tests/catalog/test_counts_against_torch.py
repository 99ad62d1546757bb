"""Parameter counts of unusual layers against the modules of transformers, built tiny and without memory.

A router's correction bias and the table of a hashed router are buffers there, so they are added to what torch counts.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from ridgepoint.catalog.tables import spec_from_table
from ridgepoint.cost import shape_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON: dict[str, Any] = {
    "d_model": 64, "vocab": 96, "tied": False, "max_context": 512, "heads": 4, "rope_theta": 1e4, "experts": 8, "top_k": 2, "expert_ffn": 24,
    "normalise": True, "source": "here", "date": "now",
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "hidden_size": 64, "vocab_size": 96, "tie_word_embeddings": False, "max_position_embeddings": 512, "num_attention_heads": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

NEMOTRON = "ME*EM*"
CASES = {
    "deepseek_v4": (
        {"head_dim": 32, "num_key_value_heads": 1, "q_lora_rank": 16, "qk_rope_head_dim": 8, "o_groups": 2, "o_lora_rank": 12, "num_hidden_layers": 5,
         "compress_ratios": [0, 128, 4, 128, 4], "index_n_heads": 3, "index_head_dim": 8, "index_topk": 4, "sliding_window": 16, "hc_mult": 4,
         "n_routed_experts": 8, "n_shared_experts": 1, "num_hash_layers": 1, "scoring_func": "sqrtsoftplus", "num_nextn_predict_layers": 0,
         "rope_theta": 1e4},
        {"head_dim": 32, "layers": 5, "compress_ratios": [0, 128, 4, 128, 4], "compress_overlapping": [4], "compress_indexed": [4], "compress_q_rank": 16,
         "o_groups": 2, "o_rank": 12, "rotary_dim": 8, "sinks": True, "window": 16, "indexer_heads": 3, "indexer_dim": 8, "indexer_top_k": 4,
         "indexer_block": 1, "indexer_weighted": True, "indexer_fp8_keys": True, "shared_ffn": 24, "hashed_layers": 1, "hyper_streams": 4, "qk_norm": "none",
         "output_gate": "none", "activation": "limited_swiglu", "activation_limit": 10.0, "router": "sqrt_softplus", "correction_bias": True},
        4 * 8,  # correction biases of the layers that are not hashed
    ),
    "nemotron_h": (
        {"head_dim": 16, "num_key_value_heads": 2, "hybrid_override_pattern": NEMOTRON, "num_hidden_layers": 6, "mamba_num_heads": 4, "mamba_head_dim": 8,
         "n_groups": 2, "ssm_state_size": 12, "conv_kernel": 4, "use_conv_bias": True, "n_routed_experts": 8, "n_shared_experts": 1,
         "moe_shared_expert_intermediate_size": 40, "moe_latent_size": 16, "mlp_hidden_act": "relu2", "intermediate_size": 24},
        {"head_dim": 16, "kv_heads": 2, "layers": 6, "pattern": NEMOTRON, "mamba_heads": 4, "mamba_head_dim": 8, "mamba_groups": 2, "mamba_state": 12,
         "mamba_conv": 4, "mamba_conv_bias": True, "shared_ffn": 40, "latent_dim": 16, "qk_norm": "none", "output_gate": "none", "activation": "relu2",
         "router": "sigmoid", "correction_bias": True},
        2 * 8,
    ),
    "gemma4_text": (
        {"head_dim": 16, "global_head_dim": 32, "num_key_value_heads": 2, "num_global_key_value_heads": 1, "num_hidden_layers": 6, "sliding_window": 16,
         "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 8,
         "top_k_experts": 2, "intermediate_size": 40, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "tie_word_embeddings": True},
        {"head_dim": 32, "window_head_dim": 16, "kv_heads": 1, "window_kv_heads": 2, "layers": 6, "window": 16, "full_attention_layers": [5],
         "full_v_from_k": True, "shared_ffn": 40, "post_norms": True, "tied": True, "qk_norm": "per_head", "output_gate": "none", "activation": "geglu",
         "router": "softmax"},
        # Not facts of the spec: three more norms beside the experts, a scale per channel and per expert in the router.
        -6 * (3 * 64 + 64 + 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_counts_agree(family: str) -> None:
    config, table, beside = CASES[family]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        built = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **{**CONFIG, **config})
        )
    theirs = sum(parameter.numel() for parameter in built.parameters())
    shape = shape_of(spec_from_table(family, {"family": family, **COMMON, **table}))
    assert shape.total_params == theirs + beside
