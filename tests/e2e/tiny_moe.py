"""A tiny random Qwen3-MoE checkpoint with its tokenizer, written by transformers on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_tokenizer import write_tokenizer


def write_tiny_moe(folder: Path, *, template: str | None = None, special: Sequence[str] = ()) -> Path:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=None, tie_word_embeddings=False,
        decoder_sparse_step=1, norm_topk_prob=True, initializer_range=0.3,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.float32).save_pretrained(folder)
    options = {} if template is None else {"template": template}
    write_tokenizer(folder, special=special, **options)
    return folder
