"""A tiny random gpt-oss checkpoint whose tokenizer has harmony's marks, written by transformers on the spot."""

from __future__ import annotations

from pathlib import Path

from harmony_template import TEMPLATE
from harmony_tokens import SPECIAL
from tiny_tokenizer import write_tokenizer

FIRST_MARK = 3  # behind the tokenizer's own special tokens
IDS = {name.strip("<|>"): FIRST_MARK + place for place, name in enumerate(SPECIAL)}


def write_tiny_gpt_oss(folder: Path) -> Path:
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=400, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"], max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 150_000.0},
        eos_token_id=IDS["return"], pad_token_id=None, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    GptOssForCausalLM(config).to(torch.float32).save_pretrained(folder)
    write_tokenizer(folder, template=TEMPLATE, special=SPECIAL)
    return folder
