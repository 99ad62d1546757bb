"""Write the benchmark model: a random Qwen3-MoE of about 1.3 B parameters (0.23 B active) as a Hugging Face folder.

Embeddings have unit variance: with the usual 0.02 the router sees nearly the same vector for every token, half of the
experts stay cold and every engine looks faster than it is.

    python benchmarks/random_checkpoint.py /tmp/moe-1.3b
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIG: dict[str, object] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "moe_intermediate_size": 384,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SMOKE = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}  # fmt: skip


def layer_tensors(layer: int, config: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Every tensor of one decoder layer under its published name, scaled to keep activations near unit variance."""
    d, h, g, p = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))
    f = config["moe_intermediate_size"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(torch.bfloat16)

    def ones(n: int) -> torch.Tensor:
        return torch.ones(n, dtype=torch.bfloat16)

    prefix = f"model.layers.{layer}."
    tensors = {
        "self_attn.q_proj.weight": matrix(h * p, d),
        "self_attn.k_proj.weight": matrix(g * p, d),
        "self_attn.v_proj.weight": matrix(g * p, d),
        "self_attn.o_proj.weight": matrix(d, h * p),
        "self_attn.q_norm.weight": ones(p),
        "self_attn.k_norm.weight": ones(p),
        "input_layernorm.weight": ones(d),
        "post_attention_layernorm.weight": ones(d),
        "mlp.gate.weight": matrix(config["num_experts"], d),
    }
    for expert in range(config["num_experts"]):
        tensors[f"mlp.experts.{expert}.gate_proj.weight"] = matrix(f, d)
        tensors[f"mlp.experts.{expert}.up_proj.weight"] = matrix(f, d)
        tensors[f"mlp.experts.{expert}.down_proj.weight"] = matrix(d, f)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The 256 bytes, and a made-up word for every id above them, so that servers that insist on text can start."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{index}" for index in range(len(alphabet), vocab_size)]
    vocab = {piece: index for index, piece in enumerate((alphabet + words)[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def write(folder: Path, overrides: dict[str, object] | None = None, seed: int = 0) -> Path:
    """Write config and one shard per four layers; a folder that is already complete is left as it is."""
    config = {**CONFIG, **(overrides or {})}
    done = folder / "config.json"
    if done.exists() and (folder / "tokenizer.json").exists() and json.loads(done.read_text()) == config:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    vocab, d, layers = (int(config[key]) for key in ("vocab_size", "hidden_size", "num_hidden_layers"))  # type: ignore[call-overload]
    shards: list[dict[str, torch.Tensor]] = [
        {
            "model.embed_tokens.weight": torch.randn(vocab, d, generator=generator).to(torch.bfloat16),
            "lm_head.weight": (torch.randn(vocab, d, generator=generator) * d**-0.5).to(torch.bfloat16),
            "model.norm.weight": torch.ones(d, dtype=torch.bfloat16),
        }
    ]
    for first in range(0, layers, 4):
        shards.append({})
        for layer in range(first, min(first + 4, layers)):
            shards[-1] |= layer_tensors(layer, config, generator)
    weight_map, total = {}, 0
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in shard.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index_text)
    write_tokenizer(folder, vocab)
    done.write_text(json.dumps(config))
    return folder


def as_gguf(python: str, folder: Path, fmt: str) -> Path:
    """The folder's weights as llama.cpp reads them, beside it; written once, by an interpreter that has `gguf`."""
    file = folder.with_suffix(".gguf" if fmt == "bf16" else f".{fmt}.gguf")
    if not file.exists():
        convert = Path(__file__).parent / "peers" / "gguf_checkpoint.py"
        subprocess.run([python, str(convert), str(folder), str(file), fmt], check=True, stdout=2)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a model of a few hundred kilobytes")
    arguments = parser.parse_args()
    write(arguments.folder, SMOKE if arguments.smoke else None)
    print(arguments.folder, file=sys.stdout)


if __name__ == "__main__":
    main()
