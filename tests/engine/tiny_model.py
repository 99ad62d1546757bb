"""A small random mixture of experts, made in memory, and what it must generate by definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ridgepoint.catalog.families import spec_from_config
from ridgepoint.catalog.spec import MlaSpec, RopeSpec
from ridgepoint.engine.core import EngineCore
from ridgepoint.engine.options import EngineOptions
from ridgepoint.engine.torch_engine import engine_around
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.context import CausalContext

VOCAB = 96
EOS = 0
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": VOCAB, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 48, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "max_position_embeddings": 512, "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": EOS, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip


def tiny_decoder(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Decoder:
    spec = spec_from_config(CONFIG)
    decoder = Decoder(dataclasses.replace(spec, **changes), dtype)
    decoder.initialise(seed, std=0.6)  # far from uniform, so that a wrong cache shows
    return decoder.eval().requires_grad_(False)


def latent_decoder(dtype: torch.dtype = torch.float32) -> Decoder:
    """The same with latent attention, whose prompts are lifted in runs of 32 tokens."""
    rope = RopeSpec(theta=1e4, rotary_dim=8, interleaved=True, scaling=None)
    mixer = MlaSpec(
        num_heads=4, q_rank=None, kv_rank=32, nope_dim=16, rope_dim=8, v_dim=12, scale=24**-0.5, bias=False,
        output_gate="none", rope=rope,
    )  # fmt: skip
    layers = tuple(dataclasses.replace(layer, mixer=mixer) for layer in spec_from_config(CONFIG).layers)
    return tiny_decoder(dtype, layers=layers)


def tiny_engine(decoder: Decoder, **options: Any) -> EngineCore:
    values = {"model": "tiny", "max_num_seqs": 8, "block_tokens": 4, "num_blocks": 200} | options
    return engine_around(decoder, EngineOptions(**values), lambda line: None, name="tiny", eos_ids=(EOS,))


@torch.inference_mode()
def logits_of(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    """All positions' logits, without a cache."""
    return decoder(torch.tensor(ids), CausalContext(1, len(ids)))


def greedy(decoder: Decoder, prompt: list[int], max_tokens: int) -> list[int]:
    """The definition: the whole text again for every token."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(int(logits_of(decoder, tokens)[-1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]
