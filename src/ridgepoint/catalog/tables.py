"""From one table of published shape facts to a `ModelSpec`: unknown keys, missing facts and impossible counts are refused by name.

A table states a model once and its exceptions by layer: which layers attend to everything (the others have a window or a
recurrent mixer), which have experts, which compress. Facts that arithmetic does not read (token ids, epsilons, rope scaling)
are stated neutrally, and `family` is prefixed with `catalog:` so that no engine mistakes such a spec for a checkpoint's.
"""

from __future__ import annotations

from typing import Any

from ridgepoint.catalog.linear import gated_delta, kimi_delta, mamba2
from ridgepoint.catalog.spec import (
    Activation,
    AttentionResidual,
    ClampedSwiGlu,
    CompressedSpec,
    DenseSpec,
    GeGlu,
    Gelu,
    GqaSpec,
    HyperConnections,
    IndexerSpec,
    LayerSpec,
    LimitedSwiGlu,
    LinearMixerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    PlainResidual,
    ReluSquared,
    Residual,
    RopeSpec,
    RouterSpec,
    SharedExpertSpec,
    SituGlu,
    SwiGlu,
)  # fmt: skip
from ridgepoint.errors import CatalogError

Row = dict[str, Any]

REQUIRED = (
    "family", "d_model", "layers", "vocab", "tied", "max_context", "heads", "rope_theta", "qk_norm", "output_gate", "activation",
    "source", "date",
)  # fmt: skip
OPTIONAL = (
    "kv_heads", "head_dim", "v_head_dim", "qkv_bias", "o_bias", "sinks", "rotary_dim", "norm", "head_bias", "post_norms",
    "mla_q_rank", "mla_kv_rank", "mla_rope", "mla_nope", "mla_v", "mla_rotated",
    "indexer_heads", "indexer_dim", "indexer_top_k", "indexer_block", "indexer_weighted", "indexer_fp8_keys", "indexer_from_layer",
    "window", "full_attention_every", "full_attention_layers", "window_heads", "window_kv_heads", "window_head_dim", "full_v_from_k",
    "kv_shared_layers", "compress_ratios", "compress_overlapping", "compress_indexed", "compress_q_rank", "o_groups", "o_rank",
    "linear_kind", "linear_key_heads", "linear_value_heads", "linear_head_dim", "linear_conv", "linear_full_rank_gate",
    "mamba_heads", "mamba_head_dim", "mamba_groups", "mamba_state", "mamba_conv", "mamba_conv_bias", "pattern",
    "experts", "top_k", "expert_ffn", "shared_ffn", "shared_gated", "dense_ffn", "dense_layers", "moe_every", "latent_dim", "latent_norm",
    "router", "normalise", "correction_bias", "router_bias", "expert_bias", "hashed_layers",
    "activation_alpha", "activation_limit", "activation_beta", "activation_linear_beta", "hyper_streams", "residual_block_layers",
    "headline_total_params", "headline_active_params", "notes",
)  # fmt: skip


def spec_from_table(name: str, row: Row) -> ModelSpec:
    """One `[name]` table of shape facts, validated, as a ModelSpec."""
    _check(name, row)
    layers = _patterned(name, row) if "pattern" in row else [_layer(name, row, i) for i in range(row["layers"])]
    return ModelSpec(
        family="catalog:" + row["family"], vocab_size=row["vocab"], d_model=row["d_model"], layers=_shared_kv(row, layers),
        norm=NormSpec(kind=row.get("norm", "rms"), eps=1e-6), tied_embeddings=row["tied"], head_bias=row.get("head_bias", False),
        embedding_scale=1.0, residual=_residual(row), residual_scale=1.0, logit_scale=1.0, max_context=row["max_context"], bos_ids=(), eos_ids=(),
    )  # fmt: skip


def _check(name: str, row: Row) -> None:
    unknown = set(row) - set(REQUIRED) - set(OPTIONAL)
    if unknown:
        raise CatalogError(
            f"model {name}: unknown key {min(unknown)!r}", hint="allowed: " + ", ".join(sorted((*REQUIRED, *OPTIONAL)))
        )
    missing = [key for key in REQUIRED if key not in row]
    if missing:
        raise CatalogError(f"model {name}: {missing[0]} is missing")
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise CatalogError(f"model {name}: {key} must not be negative, got {value}")
    if row.get("top_k", 0) > row.get("experts", 0):
        raise CatalogError(f"model {name}: top_k {row['top_k']} exceeds the {row.get('experts', 0)} experts")
    if not row.get("experts") and not row.get("dense_ffn"):
        raise CatalogError(f"model {name}: neither experts nor dense_ffn given")
    for key in ("compress_ratios", "pattern"):
        if key in row and len(row[key]) != row["layers"]:
            raise CatalogError(f"model {name}: {key} names {len(row[key])} layers of {row['layers']}")


def _need(name: str, row: Row, key: str, why: str) -> Any:
    if key not in row:
        raise CatalogError(f"model {name}: {key} is missing", hint=why)
    return row[key]


# ---------------------------------------------------------------- layers


def _layer(name: str, row: Row, index: int) -> LayerSpec:
    full = _is_full(row, index)
    mixer: GqaSpec | MlaSpec | CompressedSpec | LinearMixerSpec
    if "compress_ratios" in row:
        mixer = _compressed(name, row, row["compress_ratios"][index] or None)
    elif not full and "linear_kind" in row:
        mixer = _linear(name, row)
    else:
        mixer = _attention(name, row, windowed=not full)
    windowed = isinstance(mixer, CompressedSpec) or not (full or isinstance(mixer, LinearMixerSpec))
    moe = row.get("experts") and index >= row.get("dense_layers", 0) and (index + 1) % row.get("moe_every", 1) == 0
    return LayerSpec(
        mixer=mixer, ffn=_moe(name, row, index) if moe else _dense(name, row), window=row["window"] if windowed else None,
        indexer=_indexer(name, row, index, mixer, full), kv_from_layer=None, post_norms=row.get("post_norms", False),
    )  # fmt: skip


def _patterned(name: str, row: Row) -> list[LayerSpec]:
    """Nemotron-H: one letter a layer, a mixer or a feed-forward alone. M Mamba-2, * attention, E experts, - dense."""
    made: dict[str, LayerSpec] = {}

    def layer(letter: str) -> LayerSpec:
        if letter not in "M*E-":
            raise CatalogError(
                f"model {name}: pattern letter {letter!r}", hint="M mamba2, * attention, E experts, - dense"
            )
        mixer = (
            _mamba2(name, row) if letter == "M" else _attention(name, row, windowed=False) if letter == "*" else None
        )
        ffn = _moe(name, row, 0) if letter == "E" else _dense(name, row) if letter == "-" else None
        return LayerSpec(mixer=mixer, ffn=ffn, window=None, indexer=None, kv_from_layer=None, post_norms=False)

    for letter in dict.fromkeys(row["pattern"]):
        made[letter] = layer(letter)
    return [made[letter] for letter in row["pattern"]]


def _is_full(row: Row, index: int) -> bool:
    if "full_attention_layers" in row:
        return index in row["full_attention_layers"]
    if "full_attention_every" in row:
        return bool((index + 1) % row["full_attention_every"] == 0)
    return True


def _shared_kv(row: Row, layers: list[LayerSpec]) -> tuple[LayerSpec, ...]:
    """The last `kv_shared_layers` layers read the cache of the last layer of their own kind that has one."""
    first = len(layers) - row.get("kv_shared_layers", 0)
    done = layers[:first]
    for layer in layers[first:]:
        owner = max((i for i, other in enumerate(layers[:first]) if other.window == layer.window), default=None)
        if owner is None:
            raise CatalogError(f"no layer with a window of {layer.window} has a cache to share")
        done.append(
            LayerSpec(
                mixer=layer.mixer, ffn=layer.ffn, window=layer.window, indexer=layer.indexer, kv_from_layer=owner, post_norms=layer.post_norms,
            )
        )  # fmt: skip
    return tuple(done)


def _residual(row: Row) -> Residual:
    if "hyper_streams" in row:
        return HyperConnections(streams=row["hyper_streams"])
    if "residual_block_layers" in row:
        return AttentionResidual(block_layers=row["residual_block_layers"])
    return PlainResidual()


# ---------------------------------------------------------------- mixers


def _rope(row: Row, width: int) -> RopeSpec:
    return RopeSpec(theta=row["rope_theta"], rotary_dim=width, interleaved="mla_kv_rank" in row, scaling=None)


def _attention(name: str, row: Row, *, windowed: bool) -> GqaSpec | MlaSpec:
    if "mla_kv_rank" in row:
        query = row["mla_nope"] + row["mla_rope"]
        return MlaSpec(
            num_heads=row["heads"], q_rank=row["mla_q_rank"] or None, kv_rank=row["mla_kv_rank"], nope_dim=row["mla_nope"],
            rope_dim=row["mla_rope"], v_dim=row["mla_v"], scale=query**-0.5, bias=False, output_gate=row["output_gate"],
            rope=_rope(row, row["mla_rope"]) if row.get("mla_rotated", True) else None,
        )  # fmt: skip
    for key in ("kv_heads", "head_dim"):
        _need(name, row, key, "give kv_heads and head_dim, or the mla_* facts")

    def fact(key: str) -> int:
        return int((windowed and row.get(f"window_{key}")) or row[key])

    width = fact("head_dim")
    return GqaSpec(
        num_heads=fact("heads"), num_kv_heads=fact("kv_heads"), head_dim=width, v_head_dim=row.get("v_head_dim", width), scale=width**-0.5,
        rope=_rope(row, row.get("rotary_dim") or width), qkv_bias=row.get("qkv_bias", False), o_bias=row.get("o_bias", False),
        qk_norm=row["qk_norm"], sinks=row.get("sinks", False), qkv_clip=None, output_gate=row["output_gate"],
        v_from_k=row.get("full_v_from_k", False) and not windowed,
    )  # fmt: skip


def _compressed(name: str, row: Row, ratio: int | None) -> CompressedSpec:
    width = _need(name, row, "head_dim", "the width of a head of compressed attention")
    return CompressedSpec(
        num_heads=row["heads"], head_dim=width, q_rank=row["compress_q_rank"], ratio=ratio, overlapping=ratio in row["compress_overlapping"],
        o_groups=row["o_groups"], o_rank=row["o_rank"], scale=width**-0.5, rope=_rope(row, row["rotary_dim"]), sinks=row.get("sinks", False),
    )  # fmt: skip


def _indexer(
    name: str, row: Row, index: int, mixer: GqaSpec | MlaSpec | CompressedSpec | LinearMixerSpec, full: bool
) -> IndexerSpec | None:
    if "indexer_heads" not in row or not full or index < row.get("indexer_from_layer", 0):
        return None
    if isinstance(mixer, CompressedSpec) and mixer.ratio not in row["compress_indexed"]:
        return None
    why = "an indexer needs its block, whether its heads are weighted, and how its keys are kept"
    return IndexerSpec(
        num_heads=row["indexer_heads"], head_dim=row["indexer_dim"], top_k=row["indexer_top_k"], block=_need(name, row, "indexer_block", why),
        weighted=_need(name, row, "indexer_weighted", why), fp8_keys=_need(name, row, "indexer_fp8_keys", why),
    )  # fmt: skip


def _linear(name: str, row: Row) -> LinearMixerSpec:
    d, p, heads, conv = row["d_model"], row["linear_head_dim"], row["linear_value_heads"], row["linear_conv"]
    if row["linear_kind"] == "gdn":
        return gated_delta(d, key_heads=row["linear_key_heads"], value_heads=heads, head_dim=p, conv=conv)
    if row["linear_kind"] == "kda":
        gate = _need(name, row, "linear_full_rank_gate", "KDA's output gate is of low or full rank")
        return kimi_delta(d, num_heads=heads, head_dim=p, conv=conv, full_rank_gate=gate)
    raise CatalogError(f"model {name}: unknown linear_kind {row['linear_kind']!r}", hint="gdn or kda")


def _mamba2(name: str, row: Row) -> LinearMixerSpec:
    for key in ("mamba_heads", "mamba_head_dim", "mamba_groups", "mamba_state", "mamba_conv", "mamba_conv_bias"):
        _need(name, row, key, "a pattern with M needs the mamba_* facts")
    return mamba2(
        row["d_model"], num_heads=row["mamba_heads"], head_dim=row["mamba_head_dim"], groups=row["mamba_groups"], state_dim=row["mamba_state"],
        conv=row["mamba_conv"], conv_bias=row["mamba_conv_bias"],
    )  # fmt: skip


# ---------------------------------------------------------------- feed-forward


def _activation(name: str, row: Row) -> Activation:
    match row["activation"]:
        case "swiglu":
            return SwiGlu()
        case "clamped_swiglu":
            return ClampedSwiGlu(alpha=row["activation_alpha"], limit=row["activation_limit"])
        case "limited_swiglu":
            return LimitedSwiGlu(limit=row["activation_limit"])
        case "geglu":
            return GeGlu()
        case "situ":
            return SituGlu(beta=row["activation_beta"], linear_beta=row["activation_linear_beta"])
        case "gelu":
            return Gelu()
        case "relu2":
            return ReluSquared()
        case other:
            raise CatalogError(
                f"model {name}: unknown activation {other!r}",
                hint="swiglu, clamped_swiglu, limited_swiglu, geglu, situ, gelu or relu2",
            )


def _dense(name: str, row: Row) -> DenseSpec:
    width = _need(name, row, "dense_ffn", "layers without experts need the width of their feed-forward")
    return DenseSpec(width=width, activation=_activation(name, row), bias=False)


def _moe(name: str, row: Row, index: int) -> MoeSpec:
    shared = (
        SharedExpertSpec(width=row["shared_ffn"], gated=row.get("shared_gated", False))
        if row.get("shared_ffn")
        else None
    )
    hashed = "_hashed" if index < row.get("hashed_layers", 0) else ""
    router = RouterSpec(
        scores=row["router"] + hashed, normalise=row.get("normalise", False), scale=1.0, bias=row.get("router_bias", False),
        correction_bias=row.get("correction_bias", False) and not hashed, num_groups=1, topk_groups=1, group_score="max", jitter_eps=None,
    )  # fmt: skip
    return MoeSpec(
        num_experts=row["experts"], top_k=row["top_k"], width=row["expert_ffn"], activation=_activation(name, row),
        bias=row.get("expert_bias", False), router=router, shared=shared, latent_dim=row.get("latent_dim"), latent_norm=row.get("latent_norm", False),
    )  # fmt: skip
