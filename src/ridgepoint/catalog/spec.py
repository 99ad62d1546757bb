"""What a model *is*: the architecture facts that arithmetic, layers and loaders all read. Plain data, no tensors.

One `ModelSpec` serves the planner (which prices models nobody has downloaded) and the loader (which builds layers from
it), so a fact the engine cannot execute may still be stated here; the engine refuses it by name. No field has a default:
a spec is complete or it does not exist. Letters follow the project's alphabet (D model width, H query heads, G KV heads,
P head width, C MLA latent width, R rope width, E experts, K experts per token, F expert width, V vocabulary, L layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# ---------------------------------------------------------------- rotary embeddings


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071). `attention_factor` multiplies cos and sin; DeepSeek's extra softmax scale is folded
    into the attention's own `scale` by the family."""

    factor: float
    original_max_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE: one factor per frequency, `short` up to the original context and `long` beyond, chosen per model
    (by its served context), with the cos/sin magnitude for each."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    short_magnitude: float
    long_magnitude: float
    original_max_context: int


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding over the first `rotary_dim` channels; `interleaved` pairs (0,1),(2,3).. instead of halves."""

    theta: float
    rotary_dim: int
    interleaved: bool
    scaling: RopeScaling | None


# ---------------------------------------------------------------- token mixers


@dataclass(frozen=True, kw_only=True)
class GqaSpec:
    """Grouped-query attention (multi-head when H == G, multi-query when G == 1)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    rope: RopeSpec | None
    qkv_bias: bool
    o_bias: bool
    qk_norm: Literal["none", "per_head", "full"]  # "full" normalises the whole projection, before heads are split
    sinks: bool  # one learnt logit per query head joins the softmax's denominator
    qkv_clip: float | None  # after a "full" norm, before the rotation


@dataclass(frozen=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention: the cache holds one latent (C) and one rotary key (R) per token, for all heads."""

    num_heads: int
    q_rank: int | None  # None: one full-rank query projection
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float
    rope: RopeSpec
    bias: bool  # on the two down-projections and the output


@dataclass(frozen=True, kw_only=True)
class LinearMixerSpec:
    """A recurrent token mixer (Gated DeltaNet, KDA, Mamba-2): its state has a fixed size per sequence. Planner only."""

    kind: Literal["gdn", "kda", "mamba2"]
    num_params: int
    state_bytes_per_seq: int
    flops_per_token: float


Mixer = GqaSpec | MlaSpec | LinearMixerSpec


@dataclass(frozen=True, kw_only=True)
class IndexerSpec:
    """Sparse attention (DeepSeek's DSA): a small indexer scores every cached token, attention reads the best `top_k`."""

    num_heads: int
    head_dim: int
    top_k: int


# ---------------------------------------------------------------- feed-forward


@dataclass(frozen=True, kw_only=True)
class SwiGlu:
    """`silu(gate) * up`."""


@dataclass(frozen=True, kw_only=True)
class ClampedSwiGlu:
    """gpt-oss: `g = min(gate, limit)`, `u = clamp(up, -limit, limit)`, `g * sigmoid(alpha * g) * (u + 1)`."""

    alpha: float
    limit: float


Activation = SwiGlu | ClampedSwiGlu


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """Gated dense feed-forward of width `width`."""

    width: int
    activation: Activation
    bias: bool


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How K of E experts are chosen and weighted.

    `scores`: what the logits become. `softmax` and `sigmoid` act before the choice; `softmax_topk` is a softmax over the
    K chosen logits; `sparsemixer` is Phi-3.5-MoE's two-step masked softmax (`jitter_eps` is its mask width).
    `correction_bias` is added for the choice only, never for the weight. With groups, only the best `topk_groups` of
    `num_groups` may be chosen from, a group's score being its best expert (`max`) or its best two (`top2_sum`).
    """

    scores: Literal["softmax", "sigmoid", "softmax_topk", "sparsemixer"]
    normalise: bool
    scale: float
    bias: bool
    correction_bias: bool
    num_groups: int
    topk_groups: int
    group_score: Literal["max", "top2_sum"]
    jitter_eps: float | None


@dataclass(frozen=True, kw_only=True)
class SharedExpertSpec:
    """Experts every token visits, fused into one feed-forward of width `width`; `gated` scales it by a sigmoid."""

    width: int
    gated: bool


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """E routed experts of width F, K per token. `latent_dim` is the width routed experts work in when it is not D."""

    num_experts: int
    top_k: int
    width: int
    activation: Activation
    bias: bool
    router: RouterSpec
    shared: SharedExpertSpec | None
    latent_dim: int | None


# ---------------------------------------------------------------- the whole model


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block: a token mixer and a feed-forward, each behind its own norm and residual."""

    mixer: Mixer | None
    ffn: DenseSpec | MoeSpec | None
    window: int | None  # keys visible to a query, itself included; None is all of them
    indexer: IndexerSpec | None
    kv_from_layer: int | None  # cross-layer KV sharing: reads that layer's cache and writes none


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """`rms` (scale only) or `layer` (mean-centred, with bias)."""

    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole decoder. Multipliers are 1.0 where a family has none (Granite sets them)."""

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied_embeddings: bool
    head_bias: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    max_context: int
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)
