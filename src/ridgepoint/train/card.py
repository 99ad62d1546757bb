"""The model card written beside exported weights: where they come from, said in facts the run recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ridgepoint.errors import ConfigError
from ridgepoint.train.family import Storage
from ridgepoint.train.flops import parameter_counts
from ridgepoint.train.recipe import Recipe

_STORED = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8 matrices with one bfloat16 scale a row (`compressed-tensors`, weights only); the rest bfloat16",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What identifies the run that made the weights."""

    python_version: str
    corpus_sha256: str
    recipe_sha256: str
    held_out_modules: tuple[str, ...]
    step: int


def read_evaluation(path: Path) -> dict[str, float]:
    """Bits per byte by row, from the result that `benchmarks/stdlib_bits_per_byte.py --json` wrote."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return {name: float(row["bits_per_byte"]) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a result of benchmarks/stdlib_bits_per_byte.py ({error!r})") from None


def model_card(
    recipe: Recipe, provenance: Provenance, storage: Storage, evaluation: dict[str, float] | None = None
) -> str:
    """Markdown. `evaluation` maps what was measured to its bits per byte on the held-out modules."""
    total, active = parameter_counts(recipe)
    model, tokens = recipe.model, provenance.step * recipe.run.tokens_per_step
    unfinished = "" if provenance.step >= recipe.run.steps else f" (of {recipe.run.steps}: an unfinished run)"
    shape = f"{model.num_layers} layers of width {model.d_model}, {model.num_heads} query and {model.num_kv_heads} key heads"
    if model.num_dense_layers < model.num_layers:
        shape += (
            f", {model.num_experts} experts of width {model.expert_width} with {model.top_k} a token"
            f" and {model.num_shared_experts} shared, {model.num_dense_layers} dense layer(s) first"
        )
    lines = [
        "---",
        "license: psf-2.0",
        "library_name: transformers",
        "---",
        f"# {recipe.name}",
        "",
        "A small base language model of Python source. It continues code; it follows no instructions, knows only the",
        "standard library, and what it writes is not checked.",
        "",
        f"- Architecture: `glm4_moe`; {shape}; {total / 1e6:.1f} M parameters, {active / 1e6:.2f} M active per token;",
        f"  context {model.max_context}; byte-level BPE of {recipe.tokenizer.vocab_size} tokens.",
        f"- Stored as {_STORED[storage]}.",
        f"- Trained on the source of the Python {provenance.python_version} standard library and its tests,",
        f"  {tokens / 1e6:.1f} M tokens in {provenance.step} steps{unfinished}.",
        f"- Held out, with their tests: {', '.join(provenance.held_out_modules)}.",
        f"- Corpus SHA-256 `{provenance.corpus_sha256}`; recipe SHA-256 `{provenance.recipe_sha256}`.",
        f"- Made by `ridgepoint train recipes/{recipe.name.removesuffix('-moe')}.toml`.",
    ]
    if storage == "int8":
        lines += [
            "- For `transformers`: `python -m ridgepoint.train.plain THIS_FOLDER OUT` writes it in plain bfloat16."
        ]
    if evaluation:
        lines += ["", "| bits per byte, held-out modules | |", "| --- | --- |"]
        lines += [f"| {what} | {value:.3f} |" for what, value in evaluation.items()]
    lines += ["", "The text it was trained on is under the Python Software Foundation License.", ""]
    return "\n".join(lines)
