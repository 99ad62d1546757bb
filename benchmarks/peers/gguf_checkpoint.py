"""Rewrite the random Qwen3-MoE folder as one GGUF file for llama.cpp: FOLDER FILE FORMAT.

bf16 keeps the same values; int8 and int4 are llama.cpp's Q8_0 and Q4_0 (blocks of 32 with one scale), rounded to nearest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}


def bf16_tensors(shard: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file as uint16 bit patterns, mapped, not read (numpy has no bfloat16)."""
    with shard.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    data = np.memmap(shard, np.uint8, "r", offset=8 + header_bytes)
    header.pop("__metadata__", None)
    return {
        name: data[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def add_vocabulary(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    """A token's text is its number, after the 256 bytes: the model has no words, but a server must write something."""
    size = config["vocab_size"]
    num_bytes = min(256, size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<0x{i:02X}>" for i in range(num_bytes)] + [f" {i}" for i in range(num_bytes, size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.BYTE] * num_bytes + [gguf.TokenType.NORMAL] * (size - num_bytes))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


QUANTISED = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}


def main(folder: Path, file: Path, fmt: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: bf16_tensors(folder / name) for name in set(weight_map.values())}

    def bf16_bits(name: str) -> np.ndarray:
        return shards[weight_map[name]][name]

    writer = gguf.GGUFWriter(file, "qwen3moe")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, config)

    def add(target: str, bits: np.ndarray) -> None:
        if bits.ndim == 1 or target.endswith("ffn_gate_inp.weight"):  # llama.cpp keeps norms and router in float32
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
        elif fmt in QUANTISED:
            wide = (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(target, gguf.quantize(wide, QUANTISED[fmt]), raw_dtype=QUANTISED[fmt])
        else:
            raw = np.ascontiguousarray(bits).view(np.uint8)
            writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", bf16_bits("model.embed_tokens.weight"))
    add("output.weight", bf16_bits("lm_head.weight"))
    add("output_norm.weight", bf16_bits("model.norm.weight"))
    for layer in range(config["num_hidden_layers"]):
        for theirs, target in LAYER_NAMES.items():
            add(f"blk.{layer}.{target}.weight", bf16_bits(f"model.layers.{layer}.{theirs}.weight"))
        for part in ("gate", "up", "down"):
            stack = [
                bf16_bits(f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight")
                for e in range(config["num_experts"])
            ]
            add(f"blk.{layer}.ffn_{part}_exps.weight", np.stack(stack))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
