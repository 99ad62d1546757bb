"""Catalogue models by name: from a table of published shape facts to the same ModelSpec a loader builds from a checkpoint.

A table here serves arithmetic (shapes, kinds of layers, routing); a checkpoint's own config.json is the authority for running
it. Facts a shape table does not carry and arithmetic does not read (token ids, epsilons, rope scaling) are stated neutrally,
and `family` is prefixed with `catalog:` so that no engine mistakes such a spec for a checkpoint's.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from ridgepoint.catalog.spec import (
    Activation,
    ClampedSwiGlu,
    DenseSpec,
    GqaSpec,
    IndexerSpec,
    LayerSpec,
    LinearMixerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RopeSpec,
    RouterSpec,
    SharedExpertSpec,
    SwiGlu,
)  # fmt: skip
from ridgepoint.errors import CatalogError

_REQUIRED = ("family", "d_model", "layers", "vocab", "tied", "max_context", "heads", "rope_theta", "source", "date")
_OPTIONAL = (
    "kv_heads", "head_dim", "v_head_dim", "qk_norm", "qkv_bias", "o_bias", "sinks", "rotary_dim", "norm", "head_bias",
    "mla_q_rank", "mla_kv_rank", "mla_rope", "mla_nope", "mla_v", "indexer_heads", "indexer_dim", "indexer_top_k",
    "window", "full_attention_every", "full_attention_layers", "window_kv_heads",
    "linear_kind", "linear_key_heads", "linear_value_heads", "linear_head_dim", "linear_conv",
    "experts", "top_k", "expert_ffn", "shared_ffn", "shared_gated", "dense_ffn", "dense_layers", "moe_every", "latent_dim",
    "router", "normalise", "correction_bias", "router_bias", "expert_bias", "activation",
    "headline_total_params", "headline_active_params", "notes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CatalogModel:
    """A spec with what its publisher says about it. Headline counts are claims, not computed here."""

    name: str
    spec: ModelSpec
    headline_total_params: float | None
    headline_active_params: float | None
    source: str
    date: str
    notes: str


def _attention(name: str, row: dict[str, Any], *, windowed: bool) -> GqaSpec | MlaSpec:
    rotary = row.get("rotary_dim")
    if "mla_kv_rank" in row:
        query = row["mla_nope"] + row["mla_rope"]
        return MlaSpec(
            num_heads=row["heads"], q_rank=row["mla_q_rank"] or None, kv_rank=row["mla_kv_rank"], nope_dim=row["mla_nope"],
            rope_dim=row["mla_rope"], v_dim=row["mla_v"], scale=query**-0.5, bias=False,
            rope=RopeSpec(theta=row["rope_theta"], rotary_dim=row["mla_rope"], interleaved=True, scaling=None),
        )  # fmt: skip
    for key in ("kv_heads", "head_dim"):
        if key not in row:
            raise CatalogError(f"model {name}: {key} is missing", hint="give kv_heads and head_dim, or the mla_* facts")
    return GqaSpec(
        num_heads=row["heads"], num_kv_heads=row.get("window_kv_heads", row["kv_heads"]) if windowed else row["kv_heads"],
        head_dim=row["head_dim"], v_head_dim=row.get("v_head_dim", row["head_dim"]), scale=row["head_dim"] ** -0.5,
        rope=RopeSpec(theta=row["rope_theta"], rotary_dim=rotary or row["head_dim"], interleaved=False, scaling=None),
        qkv_bias=row.get("qkv_bias", False), o_bias=row.get("o_bias", False), qk_norm=row.get("qk_norm", "none"),
        sinks=row.get("sinks", False), qkv_clip=None,
    )  # fmt: skip


def _linear(row: dict[str, Any]) -> LinearMixerSpec:
    """Gated DeltaNet: q, k of the key heads, v, z of the value heads, two gates, a short convolution, one state per value head."""
    d, p = row["d_model"], row["linear_head_dim"]
    keys, values = row["linear_key_heads"] * p, row["linear_value_heads"] * p
    mixed = 2 * keys + values
    params = (
        d * (mixed + values)
        + d * 2 * row["linear_value_heads"]
        + mixed * row["linear_conv"]
        + 2 * row["linear_value_heads"]
        + p
        + values * d
    )
    state = row["linear_value_heads"] * p * p
    return LinearMixerSpec(
        kind=row["linear_kind"], num_params=params,
        state_bytes_per_seq=state * 4 + mixed * (row["linear_conv"] - 1) * 2,
        flops_per_token=2.0 * params + 8.0 * state,  # decay, read, delta, write: four passes over the state
    )  # fmt: skip


def _moe(row: dict[str, Any], activation: Activation) -> MoeSpec:
    shared = (
        SharedExpertSpec(width=row["shared_ffn"], gated=row.get("shared_gated", False))
        if row.get("shared_ffn")
        else None
    )
    router = RouterSpec(
        scores=row["router"], normalise=row.get("normalise", False), scale=1.0, bias=row.get("router_bias", False),
        correction_bias=row.get("correction_bias", False), num_groups=1, topk_groups=1, group_score="max", jitter_eps=None,
    )  # fmt: skip
    return MoeSpec(
        num_experts=row["experts"], top_k=row["top_k"], width=row["expert_ffn"], activation=activation,
        bias=row.get("expert_bias", False), router=router, shared=shared, latent_dim=row.get("latent_dim"),
    )  # fmt: skip


def spec_from_table(name: str, row: dict[str, Any]) -> ModelSpec:
    """One `[name]` table of shape facts, validated, as a ModelSpec."""
    unknown = set(row) - set(_REQUIRED) - set(_OPTIONAL)
    if unknown:
        raise CatalogError(
            f"model {name}: unknown key {min(unknown)!r}",
            hint="allowed: " + ", ".join(sorted((*_REQUIRED, *_OPTIONAL))),
        )
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise CatalogError(f"model {name}: {missing[0]} is missing")
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise CatalogError(f"model {name}: {key} must not be negative, got {value}")
    if row.get("top_k", 0) > row.get("experts", 0):
        raise CatalogError(f"model {name}: top_k {row['top_k']} exceeds the {row.get('experts', 0)} experts")
    activation: Activation = (
        ClampedSwiGlu(alpha=1.702, limit=7.0) if row.get("activation") == "clamped_swiglu" else SwiGlu()
    )
    dense = DenseSpec(width=row["dense_ffn"], activation=activation, bias=False) if row.get("dense_ffn") else None
    moe = _moe(row, activation) if row.get("experts") else None
    if moe is None and dense is None:
        raise CatalogError(f"model {name}: neither experts nor dense_ffn given")
    indexer = None
    if "indexer_heads" in row:
        indexer = IndexerSpec(num_heads=row["indexer_heads"], head_dim=row["indexer_dim"], top_k=row["indexer_top_k"])
    layers = []
    for index in range(row["layers"]):
        full = _is_full(row, index)
        mixer = _linear(row) if not full and "linear_kind" in row else _attention(name, row, windowed=not full)
        is_moe = moe is not None and index >= row.get("dense_layers", 0) and (index + 1) % row.get("moe_every", 1) == 0
        layers.append(
            LayerSpec(
                mixer=mixer, ffn=moe if is_moe else dense, window=None if full or "linear_kind" in row else row["window"],
                indexer=indexer if full else None, kv_from_layer=None,
            )
        )  # fmt: skip
    return ModelSpec(
        family="catalog:" + row["family"], vocab_size=row["vocab"], d_model=row["d_model"], layers=tuple(layers),
        norm=NormSpec(kind=row.get("norm", "rms"), eps=1e-6), tied_embeddings=row["tied"], head_bias=row.get("head_bias", False),
        embedding_scale=1.0, residual_scale=1.0, logit_scale=1.0, max_context=row["max_context"], bos_ids=(), eos_ids=(),
    )  # fmt: skip


def _is_full(row: dict[str, Any], index: int) -> bool:
    if "full_attention_layers" in row:
        return index in row["full_attention_layers"]
    if "full_attention_every" in row:
        return bool((index + 1) % row["full_attention_every"] == 0)
    return True


@lru_cache(maxsize=1)
def catalog_models() -> dict[str, CatalogModel]:
    """Every model of the shipped catalogue by name."""
    data = tomllib.loads(resources.files("ridgepoint.catalog").joinpath("data/models.toml").read_text())
    return {
        name: CatalogModel(
            name=name, spec=spec_from_table(name, row), headline_total_params=row.get("headline_total_params"),
            headline_active_params=row.get("headline_active_params"), source=row["source"], date=row["date"], notes=row.get("notes", ""),
        )
        for name, row in data.items()
    }  # fmt: skip


ALIASES = {
    "minimax-m2": "minimax-m2.5", "minimax-m2.1": "minimax-m2.5", "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3",
    "glm-4.5": "glm-4.6", "glm-4.7": "glm-4.6", "30b-a3b": "qwen3-30b-a3b", "llama-3.3-70b": "llama-3.1-70b",
    "kimi-k2.5": "kimi-k2", "qwen3-coder-30b-a3b": "qwen3-30b-a3b",
}  # fmt: skip


def catalog_model(name: str) -> CatalogModel:
    models = catalog_models()
    ident = ALIASES.get(name.lower(), name.lower())
    if ident in models:
        return models[ident]
    near = [key for key in models if name.lower() in key or key in name.lower()] or sorted(models)
    raise CatalogError(f"unknown model {name!r}", hint="try " + ", ".join(near[:8]) + ", or a path to a config.json")


def model_spec(name: str) -> ModelSpec:
    """The spec of a catalogue model by name or alias."""
    return catalog_model(name).spec
