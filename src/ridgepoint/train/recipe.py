"""The recipe: one TOML file that says everything about a run. Frozen, validated once, unknown keys are errors.

Knows nothing of tensors. Invariant: two runs of equal recipes on equal corpora make equal weights.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ridgepoint.errors import ConfigError

Size = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # of a running mean
NotNegative = Annotated[float, Meta(ge=0, le=sys.float_info.max)]


class CorpusTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    hold_out_one_in: Size
    exclude: tuple[str, ...]


class TokenizerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    vocab_size: Size
    # a training text is cut at random places this many characters apart (mean) before it is tokenised, so that the
    # model also knows prompts that end inside what would have been one token
    cut_every_chars: Count


class ModelTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GLM-4.5-MoE's facts (Hugging Face names where they exist). `num_dense_layers == num_layers` is a dense model."""

    d_model: Size
    num_layers: Size
    num_dense_layers: Count
    num_heads: Size
    num_kv_heads: Size
    head_dim: Size
    rotary_frac: Share
    rope_theta: Positive
    dense_width: Size
    num_experts: Size
    top_k: Size
    expert_width: Size
    num_shared_experts: Count
    routed_scale: Positive
    max_context: Size
    norm_eps: Positive
    tied_embeddings: bool


class OptimizerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with a linear warmup and a cosine to `final_lr_frac`; `balance_rate` moves the routers' correction bias."""

    lr: Positive
    beta1: Decay
    beta2: Decay
    eps: Positive
    weight_decay: NotNegative
    clip_norm: Positive
    warmup_steps: Count
    final_lr_frac: Share
    balance_rate: NotNegative


class PhaseTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Until `until_frac` of the steps: sequences of `seq_len`, a share of them from the test suite."""

    until_frac: Share
    seq_len: Size
    tests_frac: Share


class RunTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seed: Count
    steps: Size
    tokens_per_step: Size
    tokens_per_microbatch: Size
    workers: Size
    compile: bool
    log_every_steps: Size
    evaluate_every_steps: Size
    evaluate_bytes: Count
    checkpoint_every_s: NotNegative


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
        raise ConfigError(f"recipe: {message}")


def _check_together(recipe: Recipe) -> None:
    """What no field can say alone."""
    model, run, phases = recipe.model, recipe.run, recipe.phases
    heads, kv_heads, dense, layers = model.num_heads, model.num_kv_heads, model.num_dense_layers, model.num_layers
    _require(heads % kv_heads == 0, f"model.num_heads {heads} is no multiple of model.num_kv_heads {kv_heads}")
    _require(dense <= layers, f"model.num_dense_layers {dense} is above model.num_layers {layers}")
    _require(model.top_k <= model.num_experts, f"model.top_k {model.top_k} is above num_experts {model.num_experts}")
    rotary = model.head_dim * model.rotary_frac
    _require(rotary % 2 == 0, f"model.head_dim * model.rotary_frac must be an even number, got {rotary:g}")
    vocab_size = recipe.tokenizer.vocab_size
    _require(vocab_size > 257, f"tokenizer.vocab_size must exceed 257 (256 bytes and the end token), got {vocab_size}")
    ends = [phase.until_frac for phase in phases]
    _require(ends == sorted(ends) and ends[-1:] == [1.0], f"phases must rise to until_frac 1.0, got {ends}")
    step, micro = run.tokens_per_step, run.tokens_per_microbatch
    _require(step % micro == 0, f"run.tokens_per_step {step} must be whole microbatches of {micro}")
    for length in (phase.seq_len for phase in phases):
        _require(length <= model.max_context, f"a phase's seq_len {length} exceeds max_context {model.max_context}")
        _require(micro % length == 0, f"run.tokens_per_microbatch {micro} must be whole sequences of {length}")


def parse_recipe(data: dict[str, Any]) -> Recipe:
    try:
        recipe = msgspec.convert(data, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"recipe: {error}{_got(data, str(error))}", hint="every key of recipes/stdlib.toml is required and no other"
        ) from None
    _check_together(recipe)
    return recipe


def _got(data: Any, message: str) -> str:
    """The number that stands where msgspec says that one is out of range; of wrong types it speaks itself."""
    where = re.search(r"at `\$\.([^`]*)`$", message)
    if where is None or not re.match(r"Expected `(?:int|float)` [<>]", message):
        return ""
    for key in re.findall(r"\w+", where[1]):
        data = data[int(key) if isinstance(data, list) else key]
    return f", got {data!r}"


def load_recipe(path: Path) -> Recipe:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None
    return parse_recipe(data)
