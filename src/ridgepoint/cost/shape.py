"""A model as the arithmetic sees it: kinds of layers with their counts, and the parameters of each part of a kind.

Decides nothing and knows no hardware, format or batch. Layers that cost the same are one `LayerKind` with a count, so a
61-layer model costs as many terms as it has kinds. Invariant: the parts sum to the model's whole parameter count.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

from ridgepoint.catalog.spec import (
    CompressedSpec,
    DenseSpec,
    GqaSpec,
    HyperConnections,
    IndexerSpec,
    LayerSpec,
    LinearMixerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    Residual,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """`count` identical layers. `*_params` are per layer; `expert_params` is one routed expert's matrices."""

    count: int
    gqa: GqaSpec | None
    mla: MlaSpec | None
    compressed: CompressedSpec | None
    linear: LinearMixerSpec | None
    window: int | None
    indexer: IndexerSpec | None
    owns_kv: bool
    moe: MoeSpec | None
    dense: DenseSpec | None
    mixer_params: int
    out_params: int  # of mixer_params: the output projection, where it is known apart
    kv_up_params: int  # MLA's latent-to-heads projection, part of mixer_params: applied per query (absorbed) or per key
    indexer_params: int
    dense_params: int
    expert_params: int
    latent_params: int  # into and out of the routed experts' own width, and that width's norm
    router_params: int
    shared_params: int
    norm_params: int
    residual_params: int  # what mixes residual streams before and after the mixer and the feed-forward
    mixer_vector_params: int  # of mixer_params: biases, norms inside and sinks, which no token is multiplied with
    expert_vector_params: int
    dense_vector_params: int

    @property
    def matmul_params(self) -> int:
        """Weights each token is multiplied with in this layer (K experts of E)."""
        mixer = self.mixer_params - self.mixer_vector_params + self.indexer_params
        return mixer + self._ffn_matmul_params + self.residual_params

    @property
    def after_attention_params(self) -> int:
        """Of `matmul_params`, those behind attention, where each row is by itself."""
        return self.out_params + self._ffn_matmul_params + self.ffn_residual_params

    @property
    def _ffn_matmul_params(self) -> int:
        dense = self.dense_params - self.dense_vector_params + self.latent_params + self.shared_params
        if not self.moe:
            return dense
        biases = self.moe.num_experts * (self.moe.router.bias + self.moe.router.correction_bias)
        experts = self.moe.top_k * (self.expert_params - self.expert_vector_params)
        return dense + experts + self.router_params - biases

    @property
    def ffn_residual_params(self) -> int:
        """Of `residual_params`, those around the feed-forward."""
        if not (self.moe or self.dense):
            return 0
        return self.residual_params // 2 if self.mixer_params else self.residual_params

    @property
    def total_params(self) -> int:
        experts = self.moe.num_experts * self.expert_params if self.moe else 0
        return (
            self.mixer_params + self.indexer_params + self.dense_params + experts + self.latent_params
            + self.router_params + self.shared_params + self.norm_params + self.residual_params
        )  # fmt: skip

    @property
    def active_params(self) -> int:
        experts = self.moe.num_experts * self.expert_params if self.moe else 0
        hit = self.moe.top_k * self.expert_params if self.moe else 0
        return self.total_params - experts + hit


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The whole model; `embedding_params` is looked up (one row per token), `head_params` is multiplied (0 rows stored if tied).
    `earlier` are the `kinds` without the last layer, which is `last`."""

    kinds: tuple[LayerKind, ...]
    earlier: tuple[LayerKind, ...]
    last: LayerKind
    d_model: int
    vocab_size: int
    num_layers: int
    embedding_params: int
    head_params: int
    tied: bool
    final_norm_params: int  # the last norm and what joins the residual streams before it
    residual_streams: int

    @property
    def total_params(self) -> int:
        layers = sum(kind.count * kind.total_params for kind in self.kinds)
        return layers + self.embedding_params + (0 if self.tied else self.head_params) + self.final_norm_params

    @property
    def active_params(self) -> int:
        """Parameters a token is multiplied with: K of E experts, the head, and neither embedding table nor idle experts."""
        layers = sum(kind.count * kind.active_params for kind in self.kinds)
        return layers + self.head_params + self.final_norm_params

    @property
    def expert_params(self) -> int:
        return sum(kind.count * kind.moe.num_experts * kind.expert_params for kind in self.kinds if kind.moe)

    @property
    def sparsity(self) -> float:
        """N_total / N_active, the number that sets the ridge batch."""
        return self.total_params / self.active_params


def _gate_params(gate: str, d: int, heads: int, width: int) -> int:
    return {"none": 0, "per_head": d * heads, "per_channel": d * heads * width}[gate]


def _gqa_params(gqa: GqaSpec, d: int, *, owns_kv: bool) -> tuple[int, int]:
    """(all, of which biases, norms and sinks)."""
    h, g, p, pv = gqa.num_heads, gqa.num_kv_heads, gqa.head_dim, gqa.v_head_dim
    rows = h * p + (g * p + (0 if gqa.v_from_k else g * pv) if owns_kv else 0)
    norms = {"none": 0, "per_head": 2 * p, "full": h * p + g * p}[gqa.qk_norm]
    bias = (rows if gqa.qkv_bias else 0) + (d if gqa.o_bias else 0)
    vectors = norms + bias + (h if gqa.sinks else 0)
    return d * rows + h * pv * d + _gate_params(gqa.output_gate, d, h, pv) + vectors, vectors


def _mla_params(mla: MlaSpec, d: int) -> tuple[int, int, int]:
    """(all, of which biases and norms, of which latent-to-heads)."""
    heads = mla.num_heads
    query = mla.nope_dim + mla.rope_dim
    q = d * heads * query if mla.q_rank is None else d * mla.q_rank + mla.q_rank * heads * query
    down = d * (mla.kv_rank + mla.rope_dim)
    norms = mla.kv_rank + (mla.q_rank or 0)
    up = mla.kv_rank * heads * (mla.nope_dim + mla.v_dim)
    bias = (mla.q_rank or 0) + mla.kv_rank + mla.rope_dim + d if mla.bias else 0
    gate = _gate_params(mla.output_gate, d, heads, mla.v_dim)
    return q + down + up + heads * mla.v_dim * d + gate + norms + bias, norms + bias, up


def _compressed_out_params(mixer: CompressedSpec, d: int) -> int:
    return mixer.num_heads * mixer.head_dim * mixer.o_rank + mixer.o_groups * mixer.o_rank * d


def _compressed_params(mixer: CompressedSpec, d: int) -> tuple[int, int]:
    """(all, of which norms, sinks and the pool's position weights)."""
    h, p = mixer.num_heads, mixer.head_dim
    q = d * mixer.q_rank + mixer.q_rank * h * p
    out = _compressed_out_params(mixer, d)
    vectors = mixer.q_rank + p + (h if mixer.sinks else 0)
    pool = 0
    if mixer.ratio is not None:
        width = p * (2 if mixer.overlapping else 1)
        pool, vectors = 2 * d * width, vectors + mixer.ratio * width + p
    return q + d * p + out + pool + vectors, vectors


def _indexer_params(indexer: IndexerSpec, layer: LayerSpec, d: int) -> int:
    """Queries from the low-rank query where there is one; one key a token, or a pooled one where the cache is compressed."""
    mixer = layer.mixer
    rank = mixer.q_rank if isinstance(mixer, MlaSpec | CompressedSpec) and mixer.q_rank else d
    queries = rank * indexer.num_heads * indexer.head_dim
    weights = d * indexer.num_heads if indexer.weighted else 0
    if isinstance(mixer, CompressedSpec) and mixer.ratio is not None:
        width = indexer.head_dim * (2 if mixer.overlapping else 1)
        return queries + weights + 2 * d * width + mixer.ratio * width + indexer.head_dim
    return queries + weights + d * indexer.head_dim + 2 * indexer.head_dim


def _mixing_params(residual: Residual, d: int) -> tuple[int, int]:
    """(around one mixer or feed-forward, before the last norm) of what mixes residual streams."""
    if not isinstance(residual, HyperConnections):
        return 0, 0
    n = residual.streams
    return (2 + n) * n * (n * d + 1) + 3, n * n * d + n + 1


def _layer_kind(spec: ModelSpec, layer: LayerSpec) -> LayerKind:
    d = spec.d_model
    norm = d * (2 if spec.norm.kind == "layer" else 1) * (2 if layer.post_norms else 1)
    gqa = layer.mixer if isinstance(layer.mixer, GqaSpec) else None
    mla = layer.mixer if isinstance(layer.mixer, MlaSpec) else None
    compressed = layer.mixer if isinstance(layer.mixer, CompressedSpec) else None
    linear = layer.mixer if isinstance(layer.mixer, LinearMixerSpec) else None
    moe = layer.ffn if isinstance(layer.ffn, MoeSpec) else None
    dense = layer.ffn if isinstance(layer.ffn, DenseSpec) else None
    owns_kv = layer.kv_from_layer is None
    mixer, out, up, vectors = 0, 0, 0, 0
    if gqa:
        mixer, vectors = _gqa_params(gqa, d, owns_kv=owns_kv)
        out = gqa.num_heads * gqa.v_head_dim * d
    elif mla:
        mixer, vectors, up = _mla_params(mla, d)
        out = mla.num_heads * mla.v_dim * d
    elif compressed:
        mixer, vectors = _compressed_params(compressed, d)
        out = _compressed_out_params(compressed, d)
    elif linear:
        mixer = linear.num_params
    blocks = (layer.mixer is not None) + (layer.ffn is not None)
    work_dim = (moe.latent_dim or d) if moe else d
    expert_vectors = (moe.activation.matrices - 1) * moe.width + work_dim if moe and moe.bias else 0
    dense_vectors = (dense.activation.matrices - 1) * dense.width + d if dense and dense.bias else 0
    return LayerKind(
        count=1, gqa=gqa, mla=mla, compressed=compressed, linear=linear, window=layer.window, indexer=layer.indexer, owns_kv=owns_kv,
        moe=moe, dense=dense, mixer_params=mixer, out_params=out, kv_up_params=up,
        indexer_params=_indexer_params(layer.indexer, layer, d) if layer.indexer else 0,
        dense_params=dense.activation.matrices * d * dense.width + dense_vectors if dense else 0,
        expert_params=moe.activation.matrices * work_dim * moe.width + expert_vectors if moe else 0,
        latent_params=2 * d * moe.latent_dim + (moe.latent_dim if moe.latent_norm else 0) if moe and moe.latent_dim else 0,
        router_params=(
            d * moe.num_experts + (moe.num_experts if moe.router.bias else 0) + (moe.num_experts if moe.router.correction_bias else 0)
        ) if moe else 0,
        shared_params=(moe.activation.matrices * d * moe.shared.width + (d if moe.shared.gated else 0)) if moe and moe.shared else 0,
        norm_params=norm * blocks, residual_params=_mixing_params(spec.residual, d)[0] * blocks,
        mixer_vector_params=vectors, expert_vector_params=expert_vectors, dense_vector_params=dense_vectors,
    )  # fmt: skip


def _counted(layers: list[LayerKind]) -> tuple[LayerKind, ...]:
    return tuple(replace(kind, count=count) for kind, count in Counter(layers).items())


def _build(spec: ModelSpec) -> ModelShape:
    d = spec.d_model
    layers = [_layer_kind(spec, layer) for layer in spec.layers]
    return ModelShape(
        kinds=_counted(layers),
        earlier=_counted(layers[:-1]),
        last=layers[-1],
        d_model=d,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        embedding_params=spec.vocab_size * d,
        head_params=spec.vocab_size * d + (spec.vocab_size if spec.head_bias else 0),
        tied=spec.tied_embeddings,
        final_norm_params=d * (2 if spec.norm.kind == "layer" else 1) + _mixing_params(spec.residual, d)[1],
        residual_streams=spec.residual.streams if isinstance(spec.residual, HyperConnections) else 1,
    )


# Keyed by identity because hashing 61 layers costs more than the step; the spec is kept alive so its id stays its own.
_SHAPES: OrderedDict[int, tuple[ModelSpec, ModelShape]] = OrderedDict()


def shape_of(spec: ModelSpec) -> ModelShape:
    found = _SHAPES.get(id(spec))
    if found is not None and found[0] is spec:
        return found[1]
    shape = _build(spec)
    _SHAPES[id(spec)] = (spec, shape)
    while len(_SHAPES) > 256:
        _SHAPES.popitem(last=False)
    return shape
