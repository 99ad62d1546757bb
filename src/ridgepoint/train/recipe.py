"""The recipe: one TOML file that says everything about a run. Frozen, validated once, unknown keys are errors.

Knows nothing of tensors. Invariant: two runs of equal recipes on equal corpora make equal weights.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from ridgepoint.errors import ConfigError


class CorpusTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    hold_out_one_in: int
    exclude: tuple[str, ...]


class TokenizerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    vocab_size: int
    # a training text is cut at random places this many characters apart (mean) before it is tokenised, so that the
    # model also knows prompts that end inside what would have been one token
    cut_every_chars: int


class ModelTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GLM-4.5-MoE's facts (Hugging Face names where they exist). `num_dense_layers == num_layers` is a dense model."""

    d_model: int
    num_layers: int
    num_dense_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_frac: float
    rope_theta: float
    dense_width: int
    num_experts: int
    top_k: int
    expert_width: int
    num_shared_experts: int
    routed_scale: float
    max_context: int
    norm_eps: float
    tied_embeddings: bool


class OptimizerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with a linear warmup and a cosine to `final_lr_frac`; `balance_rate` moves the routers' correction bias."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    final_lr_frac: float
    balance_rate: float


class PhaseTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Until `until_frac` of the steps: sequences of `seq_len`, a share of them from the test suite."""

    until_frac: float
    seq_len: int
    tests_frac: float


class RunTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seed: int
    steps: int
    tokens_per_step: int
    tokens_per_microbatch: int
    workers: int
    compile: bool
    log_every_steps: int
    evaluate_every_steps: int
    evaluate_bytes: int
    checkpoint_every_s: float


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    corpus: CorpusTable
    tokenizer: TokenizerTable
    model: ModelTable
    optimizer: OptimizerTable
    phases: tuple[PhaseTable, ...]
    run: RunTable

    def phase_at(self, step: int) -> PhaseTable:
        for phase in self.phases:
            if step < phase.until_frac * self.run.steps:
                return phase
        return self.phases[-1]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _validate(recipe: Recipe) -> None:
    model, run = recipe.model, recipe.run
    _require(model.num_heads % model.num_kv_heads == 0, "model.num_heads must be a multiple of model.num_kv_heads")
    _require(0 <= model.num_dense_layers <= model.num_layers, "model.num_dense_layers must be 0..num_layers")
    _require(1 <= model.top_k <= model.num_experts, "model.top_k must be 1..num_experts")
    rotary = model.head_dim * model.rotary_frac
    _require(
        rotary == int(rotary) and int(rotary) % 2 == 0, "model.head_dim * model.rotary_frac must be an even number"
    )
    _require(recipe.tokenizer.vocab_size > 257, "tokenizer.vocab_size must exceed 257 (256 bytes and the end token)")
    _require(
        len(recipe.phases) > 0 and recipe.phases[-1].until_frac == 1.0, "the last phase must have until_frac = 1.0"
    )
    fracs = [phase.until_frac for phase in recipe.phases]
    _require(fracs == sorted(fracs), "phases must be in order of until_frac")
    for phase in recipe.phases:
        _require(phase.seq_len <= model.max_context, f"a phase's seq_len {phase.seq_len} exceeds model.max_context")
        _require(run.tokens_per_microbatch % phase.seq_len == 0, "run.tokens_per_microbatch must be whole sequences")
        _require(0.0 <= phase.tests_frac <= 1.0, "a phase's tests_frac must be 0..1")
    _require(run.tokens_per_step % run.tokens_per_microbatch == 0, "run.tokens_per_step must be whole microbatches")
    _require(min(run.steps, run.workers, run.log_every_steps, run.evaluate_every_steps) > 0, "run counts must be > 0")


def parse_recipe(data: dict[str, Any]) -> Recipe:
    try:
        recipe = msgspec.convert(data, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"recipe: {error}", hint="every key of recipes/stdlib.toml is required and no other"
        ) from None
    _validate(recipe)
    return recipe


def load_recipe(path: Path) -> Recipe:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None
    return parse_recipe(data)
