"""Does every family compute what `transformers` computes? One row per case: logits of prefill and decode, 64 greedy tokens.

Each case is a tiny checkpoint with every parameter random (biases, norms, sinks and correction biases too, so that a
forgotten one shows), written by `transformers` and loaded here in float32. Ours runs through the paged cache: prefill
in chunks, then token by token, then once more on top of a shared prefix.

    python benchmarks/parity.py                      torch ops, and the native kernels over packed weights
    python benchmarks/parity.py --paths torch
    python benchmarks/parity.py --smoke
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import provenance
from ridgepoint.kernels import native
from ridgepoint.models.checkpoint import load
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import pack_decoder
from ridgepoint.models.paged import KVCache, PagedContext, StepInputs

TOLERANCE_FRAC = 1e-4  # of the logit range: float32 rounding of a few layers stays two orders below
BLOCK_TOKENS = {
    False: 8,
    True: 16,
}  # packed or not: torch ops take blocks of any size, native attention multiples of 16
PROMPT_TOKENS = 37
CHUNKS = (16, 13)  # the rest of the prompt is the last chunk
SHARED_BLOCKS = 2  # prefix blocks a second sequence takes over
GREEDY_TOKENS = 64

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 3}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
MLA = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4}
GLM = {**ROUTED, "head_dim": 16, "routed_scaling_factor": 1.7}
ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention"]


def rope(kind: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
YARN_MSCALE = rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.7)
LONGROPE = rope(
    "longrope",
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[2.0 + 0.5 * i for i in range(8)],
    short_mscale=1.1,
    long_mscale=1.3,
    original_max_position_embeddings=256,
)


@dataclass(frozen=True)
class Case:
    """A family and what this case changes in its config."""

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("llama", "llama"),
    Case("llama, llama3 rope", "llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                             original_max_position_embeddings=64)),
    Case("llama, linear rope, tied", "llama", {**rope("linear", factor=2.0), "tie_word_embeddings": True}),
    Case("llama, yarn, biases", "llama", {**YARN, "attention_bias": True, "mlp_bias": True}),
    Case("qwen3", "qwen3", {"head_dim": 16}),
    Case("qwen3, windows, tied", "qwen3", {"head_dim": 32, "use_sliding_window": True, "sliding_window": 11,
                                           "max_window_layers": 1, "tie_word_embeddings": True}),
    Case("mixtral", "mixtral", LOCAL),
    Case("mixtral, window", "mixtral", {**LOCAL, "sliding_window": 13, "head_dim": 24}),
    Case("qwen2_moe", "qwen2_moe", {**MOE, "shared_expert_intermediate_size": 48}),
    Case("qwen2_moe, windows", "qwen2_moe", {**MOE, "shared_expert_intermediate_size": 48, "use_sliding_window": True,
                                             "sliding_window": 9, "norm_topk_prob": True, "mlp_only_layers": [0]}),
    Case("qwen3_moe", "qwen3_moe", {**MOE, "head_dim": 16, "norm_topk_prob": True}),
    Case("qwen3_moe, dense layers", "qwen3_moe", {**MOE, "head_dim": 16, "mlp_only_layers": [1], "attention_bias": True}),
    Case("qwen3_moe, window", "qwen3_moe", {**MOE, "head_dim": 16, "decoder_sparse_step": 2, "use_sliding_window": True,
                                            "sliding_window": 10}),
    Case("olmoe", "olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    Case("olmoe, clip", "olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": 0.4, "norm_topk_prob": True}),
    Case("deepseek_v2", "deepseek_v2", {**ROUTED, **MLA, "q_lora_rank": 24, "n_shared_experts": 2}),
    Case("deepseek_v2, no q rank, yarn", "deepseek_v2", {**ROUTED, **MLA, **YARN_MSCALE, "q_lora_rank": None,
                                                         "n_shared_experts": 1, "routed_scaling_factor": 1.5}),
    Case("deepseek_v2, groups, biases", "deepseek_v2", {**ROUTED, **MLA, "q_lora_rank": 24, "n_shared_experts": 1, "n_group": 4,
                                                        "topk_group": 2, "topk_method": "group_limited_greedy",
                                                        "attention_bias": True}),
    Case("deepseek_v3", "deepseek_v3", {**ROUTED, **MLA, "q_lora_rank": 24, "n_group": 4, "topk_group": 2}),
    Case("deepseek_v3, no q rank", "deepseek_v3", {**ROUTED, **MLA, "q_lora_rank": None, "n_group": 2, "topk_group": 1,
                                                   "rope_interleave": False, "norm_topk_prob": False}),
    Case("deepseek_v3, yarn", "deepseek_v3", {**ROUTED, **MLA, **YARN_MSCALE, "q_lora_rank": 24, "n_group": 1,
                                              "topk_group": 1}),
    Case("gpt_oss", "gpt_oss", {**LOCAL, "head_dim": 16, "sliding_window": 12, "layer_types": ALTERNATE,
                                **rope("yarn", 150_000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=32.0,
                                       beta_slow=1.0, truncate=False), "swiglu_limit": 1.5}),
    Case("glm4_moe", "glm4_moe", {**GLM, "n_group": 2, "topk_group": 1, "use_qk_norm": True, "n_shared_experts": 2}),
    Case("glm4_moe, biases", "glm4_moe", {**GLM, "n_group": 1, "topk_group": 1, "attention_bias": True}),
    Case("minimax_m2", "minimax_m2", {**LOCAL, "head_dim": 16, "rotary_dim": 8}),
    Case("phimoe", "phimoe", {**LOCAL, "num_experts_per_tok": 2, "router_jitter_noise": 0.2}),
    Case("phimoe, longrope, biases", "phimoe", {**LOCAL, **LONGROPE, "num_experts_per_tok": 2, "attention_bias": True,
                                                "lm_head_bias": True, "sliding_window": 14}),
    Case("granitemoe", "granitemoe", {**LOCAL, "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
                                      "residual_multiplier": 0.4, "logits_scaling": 2.5, "tie_word_embeddings": True}),
]  # fmt: skip
SMOKE = ("qwen3_moe", "deepseek_v3", "gpt_oss")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest differences as a share of the range of `transformers`' logits, and whether greedy tokens agree."""

    case: str
    prefill_error_frac: float
    decode_error_frac: float
    shared_prefix_error_frac: float
    greedy_tokens: int
    greedy_equal: bool

    @property
    def passes(self) -> bool:
        worst = max(self.prefill_error_frac, self.decode_error_frac, self.shared_prefix_error_frac)
        return self.greedy_equal and worst <= TOLERANCE_FRAC


def make_checkpoint(case: Case, folder: Path) -> Any:
    """Write the case's random checkpoint to `folder` by `transformers`; returns its model."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.for_model(case.model_type, **{**BASE, **case.config})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model, seed=sum(map(ord, case.name)))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Every parameter and stored buffer away from its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    stored = set(model.state_dict())
    for name, value in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in stored)]:
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.copy_(1 + 0.3 * noise)
        elif value.dim() == 1 or name.endswith(("_bias", ".bias")):
            value.copy_(0.3 * noise)
        else:
            value.copy_(noise * 1.5 * value.shape[-1] ** -0.5)


class Sequence:
    """One sequence in a paged cache: `step` appends tokens and returns the logits of each."""

    def __init__(self, decoder: Decoder, cache: KVCache, blocks: list[int], num_cached: int = 0) -> None:
        self._decoder, self._cache, self._blocks = decoder, cache, torch.tensor(blocks)
        self._length = num_cached

    @torch.inference_mode()
    def step(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(self._length, self._length + len(ids))
        self._length += len(ids)
        size = self._cache.block_tokens
        inputs = StepInputs(
            token_ids_T=ids,
            positions_T=positions,
            slots_T=self._blocks[positions // size] * size + positions % size,
            query_starts_B1=torch.tensor([0, len(ids)]),
            context_lens_B=torch.tensor([self._length]),
            block_tables_BN=self._blocks[None],
            logit_rows_R=torch.arange(len(ids)),
        )
        return self._decoder.logits(self._decoder.hidden(ids, PagedContext(self._cache, inputs)))


@torch.inference_mode()
def compare(case: Case, folder: Path, packed: bool = False) -> Parity:
    """Both models on one prompt: prefill logits, then greedy decoding by each, feeding each its own tokens."""
    theirs = make_checkpoint(case, folder)
    ours = load(folder, torch.float32)
    if packed:
        pack_decoder(ours)
    generator = torch.Generator().manual_seed(7)
    prompt = torch.randint(0, BASE["vocab_size"], (PROMPT_TOKENS,), generator=generator)
    block_tokens = BLOCK_TOKENS[packed]
    total_blocks = -(-(PROMPT_TOKENS + GREEDY_TOKENS) // block_tokens)
    cache = KVCache(ours.spec, 3 * total_blocks, block_tokens, torch.float32)
    shuffled = torch.randperm(3 * total_blocks, generator=generator).tolist()
    mine, other = shuffled[:total_blocks], shuffled[total_blocks : 2 * total_blocks]

    sequence = Sequence(ours, cache, mine)
    rest = PROMPT_TOKENS - sum(CHUNKS)
    our_prefill = torch.cat([sequence.step(chunk) for chunk in prompt.split((*CHUNKS, rest))])
    out = theirs(prompt[None], use_cache=True)
    their_prefill, past = out.logits[0], out.past_key_values

    our_rows, their_rows = [our_prefill[-1]], [their_prefill[-1]]
    our_tokens, their_tokens = [int(our_prefill[-1].argmax())], [int(their_prefill[-1].argmax())]
    for _ in range(GREEDY_TOKENS - 1):
        our_rows.append(sequence.step(torch.tensor(our_tokens[-1:]))[0])
        out = theirs(torch.tensor([their_tokens[-1:]]), past_key_values=past, use_cache=True)
        their_rows.append(out.logits[0, -1])
        our_tokens.append(int(our_rows[-1].argmax()))
        their_tokens.append(int(their_rows[-1].argmax()))

    shared = SHARED_BLOCKS * block_tokens
    second = Sequence(ours, cache, [*mine[:SHARED_BLOCKS], *other[SHARED_BLOCKS:]], num_cached=shared)
    our_shared = second.step(prompt[shared:])
    spread = float(their_prefill.max() - their_prefill.min())
    return Parity(
        case=case.name,
        prefill_error_frac=float((our_prefill - their_prefill).abs().max()) / spread,
        decode_error_frac=float((torch.stack(our_rows) - torch.stack(their_rows)).abs().max()) / spread,
        shared_prefix_error_frac=float((our_shared - their_prefill[shared:]).abs().max()) / spread,
        greedy_tokens=GREEDY_TOKENS,
        greedy_equal=our_tokens == their_tokens,
    )


def table(result: dict[str, Any]) -> str:
    """Per case the largest error of prefill, decode and reused prefix on each path, and whether greedy tokens are equal."""
    paths = list(result["paths"])
    head = [
        "case",
        *(f"{path} {what}" for path in paths for what in ("prefill", "decode", "prefix")),
        f"{GREEDY_TOKENS} greedy tokens",
    ]
    lines = [head]
    for rows in zip(*(result["paths"][path] for path in paths), strict=True):
        errors = [row[f"{what}_error_frac"] for row in rows for what in ("prefill", "decode", "shared_prefix")]
        equal = all(row["greedy_equal"] for row in rows)
        lines.append([rows[0]["case"], *(f"{error:.1e}" for error in errors), "equal" if equal else "DIFFERENT"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def brief(result: dict[str, Any]) -> str:
    """The largest error of all cases on each path."""
    lines = []
    for path, rows in result["paths"].items():
        worst = max(row[f"{what}_error_frac"] for row in rows for what in ("prefill", "decode", "shared_prefix"))
        equal = sum(row["greedy_equal"] for row in rows)
        lines.append(
            f"{path:<6}  largest error {worst:.1e}, {GREEDY_TOKENS} greedy tokens equal in {equal} of {len(rows)} cases"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="three families only")
    parser.add_argument(
        "--paths", nargs="*", choices=("torch", "native"), help="default: both, if the library is built"
    )
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    paths = options.paths or (["torch", "native"] if native.available() else ["torch"])
    cases = [case for case in CASES if not options.smoke or case.name in SMOKE]
    found: dict[str, list[Parity]] = {path: [] for path in paths}
    for case in cases:
        for path in paths:
            with tempfile.TemporaryDirectory() as folder:
                found[path].append(compare(case, Path(folder), path == "native"))
        print(
            f"{case.name}: {', '.join('equal' if found[path][-1].passes else 'NOT EQUAL' for path in paths)}",
            file=sys.stderr,
        )
    result = {
        **provenance.provenance(__doc__),
        "tolerance_frac": TOLERANCE_FRAC,
        "paths": {path: [asdict(row) for row in rows] for path, rows in found.items()},
    }
    provenance.save(options.json, result)
    print(table(result))
    return 0 if all(row.passes for rows in found.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
