"""A small random mixture of experts in memory, in float64: rows of any batch agree to the last few bits."""

from __future__ import annotations

import torch

from ridgepoint.catalog.families import spec_from_config
from ridgepoint.models.decoder import Decoder

VOCAB = 300
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": VOCAB, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 48, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "max_position_embeddings": 512, "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": 0, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip


def small_decoder(dtype: torch.dtype = torch.float64) -> Decoder:
    decoder = Decoder(spec_from_config(CONFIG), dtype)
    decoder.initialise(seed=1, std=0.3)
    return decoder.eval().requires_grad_(False)
