"""What a model *is*: the architecture facts that arithmetic, layers and loaders all read. Plain data, no tensors.

One `ModelSpec` serves the planner (which prices models nobody has downloaded) and the loader (which builds layers from
it), so a fact the engine cannot execute may still be stated here; the engine refuses it by name. No field has a default:
a spec is complete or it does not exist. Letters follow the project's alphabet (D model width, H query heads, G KV heads,
P head width, C MLA latent width, R rope width, E experts, K experts per token, F expert width, V vocabulary, L layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ridgepoint.catalog.plausible import (
    MOST_CONTEXT,
    MOST_LAYERS,
    MOST_VOCABULARY,
    MOST_WIDTH,
    check_at_most,
    check_layers,
)

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

# A sigmoid of the layer's input scales the mixer's output before its last projection: one number a head, or one a channel.
OutputGate = Literal["none", "per_head", "per_channel"]


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
    output_gate: OutputGate
    v_from_k: bool  # values are the key projection before its norm and rotation: one matrix fewer, as many cached bytes


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
    rope: RopeSpec | None  # None: the R channels are kept and cached, but not rotated
    bias: bool  # on the two down-projections and the output
    output_gate: OutputGate


@dataclass(frozen=True, kw_only=True)
class CompressedSpec:
    """DeepSeek-V4's attention: one head of width P is key and value for all H queries; beyond the layer's window, every `ratio`
    tokens are pooled into one cached entry, and an indexer may choose which entries are read. Planner only.

    `ratio` None: the layer sees its window alone. `overlapping`: each entry pools two runs of tokens, so its two projections
    (of values and of pooling weights) are twice as wide. The output leaves through `o_groups` blocks of rank `o_rank`.
    """

    num_heads: int
    head_dim: int
    q_rank: int
    ratio: int | None
    overlapping: bool
    o_groups: int
    o_rank: int
    scale: float
    rope: RopeSpec
    sinks: bool


@dataclass(frozen=True, kw_only=True)
class LinearMixerSpec:
    """A recurrent token mixer (Gated DeltaNet, KDA, Mamba-2): what it keeps per sequence has a fixed size, the recurrent state
    and the last inputs of its short convolution. Planner only; `catalog.linear` makes one from a layer's widths."""

    kind: Literal["gdn", "kda", "mamba2"]
    num_heads: int
    num_params: int
    state_bytes_per_seq: int
    conv_bytes_per_seq: int
    flops_per_token: float


Mixer = GqaSpec | MlaSpec | CompressedSpec | LinearMixerSpec


@dataclass(frozen=True, kw_only=True)
class IndexerSpec:
    """Sparse attention: a small indexer scores every cached key, attention reads the best `top_k` runs of `block` of them.

    DeepSeek's DSA chooses single tokens (`block` 1), MiniMax-M3 blocks of 128. `weighted`: its heads' scores are summed by
    weights that depend on the query; otherwise each head chooses for its own group of queries.
    """

    num_heads: int
    head_dim: int
    top_k: int
    block: int
    weighted: bool
    fp8_keys: bool  # its keys are kept in fp8 whatever the cache's format


# ---------------------------------------------------------------- feed-forward


@dataclass(frozen=True, kw_only=True)
class SwiGlu:
    """`silu(gate) * up`."""

    matrices: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class LimitedSwiGlu:
    """`silu(min(gate, limit)) * clamp(up, -limit, limit)`."""

    matrices: ClassVar[int] = 3
    limit: float


@dataclass(frozen=True, kw_only=True)
class GeGlu:
    """`gelu(gate) * up`, GELU by its tanh form."""

    matrices: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class SituGlu:
    """Kimi-K3's gated activation; what its two published constants do is not published, only that there are three matrices."""

    matrices: ClassVar[int] = 3
    beta: float
    linear_beta: float


@dataclass(frozen=True, kw_only=True)
class Gelu:
    """`gelu(up)`, no gate: two matrices (GPT, OPT, BLOOM)."""

    matrices: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class ReluSquared:
    """`relu(up) ** 2`, no gate: two matrices (Nemotron)."""

    matrices: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class ClampedSwiGlu:
    """gpt-oss: `g = min(gate, limit)`, `u = clamp(up, -limit, limit)`, `g * sigmoid(alpha * g) * (u + 1)`."""

    matrices: ClassVar[int] = 3
    alpha: float
    limit: float


# `matrices` is how many a feed-forward with this activation has: gate, up and down, or up and down.
Activation = SwiGlu | LimitedSwiGlu | ClampedSwiGlu | GeGlu | SituGlu | Gelu | ReluSquared


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """Dense feed-forward of width `width`."""

    width: int
    activation: Activation
    bias: bool


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How K of E experts are chosen and weighted.

    `scores`: what the logits become. `softmax` and `sigmoid` act before the choice; `softmax_topk` is a softmax over the
    K chosen logits; `sparsemixer` is Phi-3.5-MoE's two-step masked softmax (`jitter_eps` is its mask width); `sqrt_softplus`
    is DeepSeek-V4's, and `sqrt_softplus_hashed` the same where a table by token id makes the choice and the scores only weight it.
    `correction_bias` is added for the choice only, never for the weight. With groups, only the best `topk_groups` of
    `num_groups` may be chosen from, a group's score being its best expert (`max`) or its best two (`top2_sum`).
    """

    scores: Literal["softmax", "sigmoid", "softmax_topk", "sparsemixer", "sqrt_softplus", "sqrt_softplus_hashed"]
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
    """Experts every token visits, fused into one feed-forward of width `width`; `gated` scales it by a sigmoid. A dense
    feed-forward beside the experts (Gemma 4) is the same thing to arithmetic."""

    width: int
    gated: bool


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """E routed experts of width F, K per token. `latent_dim` is the width routed experts work in when it is not D, `latent_norm`
    a norm at the door of that width."""

    num_experts: int
    top_k: int
    width: int
    activation: Activation
    bias: bool
    router: RouterSpec
    shared: SharedExpertSpec | None
    latent_dim: int | None
    latent_norm: bool


# ---------------------------------------------------------------- the whole model


@dataclass(frozen=True, kw_only=True)
class PlainResidual:
    """One stream, to which every mixer and feed-forward adds."""


@dataclass(frozen=True, kw_only=True)
class HyperConnections:
    """`streams` residual streams; before and after every mixer and feed-forward a small projection of all of them mixes them."""

    streams: int


@dataclass(frozen=True, kw_only=True)
class AttentionResidual:
    """Each block of `block_layers` layers reads a learnt mixture of the blocks before it (Kimi-K3). Elementwise."""

    block_layers: int


Residual = PlainResidual | HyperConnections | AttentionResidual


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block: a token mixer and a feed-forward (either may be absent), each behind its own norm and residual."""

    mixer: Mixer | None
    ffn: DenseSpec | MoeSpec | None
    window: int | None  # keys visible to a query, itself included; None is all of them
    indexer: IndexerSpec | None
    kv_from_layer: int | None  # cross-layer KV sharing: reads that layer's cache and writes none
    post_norms: bool  # a second norm after the mixer and after the feed-forward, before the residual


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """`rms` (scale only) or `layer` (mean-centred, with bias)."""

    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole decoder. Multipliers are 1.0 where a family has none (Granite sets them). Implausible counts are refused here,
    whoever states them."""

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied_embeddings: bool
    head_bias: bool
    embedding_scale: float
    residual: Residual
    residual_scale: float
    logit_scale: float
    max_context: int
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        check_at_most(f"{self.family}: number of layers", len(self.layers), MOST_LAYERS)
        check_at_most(f"{self.family}: width", self.d_model, MOST_WIDTH)
        check_at_most(f"{self.family}: vocabulary", self.vocab_size, MOST_VOCABULARY)
        check_at_most(f"{self.family}: context", self.max_context, MOST_CONTEXT)
        check_layers(self.family, self.layers)

    @property
    def num_layers(self) -> int:
        return len(self.layers)
