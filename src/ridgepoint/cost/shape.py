"""A model as the arithmetic sees it: kinds of layers with their counts, and the parameters of each part of a kind.

Decides nothing and knows no hardware, format or batch. Layers that cost the same are one `LayerKind` with a count, so a
61-layer model costs as many terms as it has kinds. Invariant: the parts sum to the model's whole parameter count.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from ridgepoint.catalog.spec import DenseSpec, GqaSpec, IndexerSpec, LinearMixerSpec, MlaSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """`count` identical layers. `*_params` are per layer; `expert_params` is one routed expert's matrices."""

    count: int
    gqa: GqaSpec | None
    mla: MlaSpec | None
    linear: LinearMixerSpec | None
    window: int | None
    indexer: IndexerSpec | None
    owns_kv: bool
    moe: MoeSpec | None
    dense: DenseSpec | None
    mixer_params: int
    kv_up_params: int  # MLA's latent-to-heads projection, part of mixer_params: applied per query (absorbed) or per key
    indexer_params: int
    dense_params: int
    expert_params: int
    latent_params: int  # into and out of the routed experts' own width
    router_params: int
    shared_params: int
    norm_params: int
    mixer_vector_params: int  # of mixer_params: biases, norms inside and sinks, which no token is multiplied with
    expert_vector_params: int
    dense_vector_params: int

    @property
    def matmul_params(self) -> int:
        """Weights each token is multiplied with in this layer (K experts of E)."""
        router = self.moe.num_experts if self.moe else 0
        biases = router * ((self.moe.router.bias + self.moe.router.correction_bias) if self.moe else 0)
        experts = self.moe.top_k * (self.expert_params - self.expert_vector_params) if self.moe else 0
        mixer = self.mixer_params - self.mixer_vector_params + self.indexer_params
        return (
            mixer
            + self.dense_params
            - self.dense_vector_params
            + experts
            + self.latent_params
            + self.router_params
            - biases
            + self.shared_params
        )

    @property
    def total_params(self) -> int:
        experts = self.moe.num_experts * self.expert_params if self.moe else 0
        return (
            self.mixer_params + self.indexer_params + self.dense_params + experts + self.latent_params
            + self.router_params + self.shared_params + self.norm_params
        )  # fmt: skip

    @property
    def active_params(self) -> int:
        experts = self.moe.num_experts * self.expert_params if self.moe else 0
        hit = self.moe.top_k * self.expert_params if self.moe else 0
        return self.total_params - experts + hit


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The whole model; `embedding_params` is looked up (one row per token), `head_params` is multiplied (0 rows stored if tied)."""

    kinds: tuple[LayerKind, ...]
    d_model: int
    vocab_size: int
    num_layers: int
    embedding_params: int
    head_params: int
    tied: bool
    final_norm_params: int

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


def _gqa_params(gqa: GqaSpec, d: int) -> tuple[int, int]:
    """(all, of which biases, norms and sinks)."""
    h, g, p, pv = gqa.num_heads, gqa.num_kv_heads, gqa.head_dim, gqa.v_head_dim
    qkv_rows = h * p + g * p + g * pv
    norms = {"none": 0, "per_head": 2 * p, "full": h * p + g * p}[gqa.qk_norm]
    bias = (qkv_rows if gqa.qkv_bias else 0) + (d if gqa.o_bias else 0)
    vectors = norms + bias + (h if gqa.sinks else 0)
    return d * qkv_rows + h * pv * d + vectors, vectors


def _mla_params(mla: MlaSpec, d: int) -> tuple[int, int, int]:
    """(all, of which biases and norms, of which latent-to-heads)."""
    heads = mla.num_heads
    query = mla.nope_dim + mla.rope_dim
    q = d * heads * query if mla.q_rank is None else d * mla.q_rank + mla.q_rank * heads * query
    down = d * (mla.kv_rank + mla.rope_dim)
    norms = mla.kv_rank + (mla.q_rank or 0)
    up = mla.kv_rank * heads * (mla.nope_dim + mla.v_dim)
    bias = (mla.q_rank or 0) + mla.kv_rank + mla.rope_dim + d if mla.bias else 0
    return q + down + up + heads * mla.v_dim * d + norms + bias, norms + bias, up


def _indexer_params(indexer: IndexerSpec, mla: MlaSpec | None, d: int) -> int:
    rows = indexer.num_heads * indexer.head_dim
    q_from = mla.q_rank if mla and mla.q_rank else d
    return q_from * rows + d * indexer.head_dim + 2 * indexer.head_dim + d * indexer.num_heads


def _build(spec: ModelSpec) -> ModelShape:
    d = spec.d_model
    norm = d * (2 if spec.norm.kind == "layer" else 1)
    counted: OrderedDict[LayerKind, int] = OrderedDict()
    for layer in spec.layers:
        gqa = layer.mixer if isinstance(layer.mixer, GqaSpec) else None
        mla = layer.mixer if isinstance(layer.mixer, MlaSpec) else None
        linear = layer.mixer if isinstance(layer.mixer, LinearMixerSpec) else None
        moe = layer.ffn if isinstance(layer.ffn, MoeSpec) else None
        dense = layer.ffn if isinstance(layer.ffn, DenseSpec) else None
        mixer, up, vectors = 0, 0, 0
        if gqa:
            mixer, vectors = _gqa_params(gqa, d)
        elif mla:
            mixer, vectors, up = _mla_params(mla, d)
        elif linear:
            mixer = linear.num_params
        owns_kv = layer.kv_from_layer is None
        if gqa and not owns_kv:
            mixer -= d * gqa.num_kv_heads * (gqa.head_dim + gqa.v_head_dim)
        work_dim = (moe.latent_dim or d) if moe else d
        kind = LayerKind(
            count=1, gqa=gqa, mla=mla, linear=linear, window=layer.window, indexer=layer.indexer, owns_kv=owns_kv,
            moe=moe, dense=dense, mixer_params=mixer, kv_up_params=up,
            indexer_params=_indexer_params(layer.indexer, mla, d) if layer.indexer else 0,
            dense_params=(3 * d * dense.width + (2 * dense.width + d if dense.bias else 0)) if dense else 0,
            expert_params=(3 * work_dim * moe.width + (2 * moe.width + work_dim if moe.bias else 0)) if moe else 0,
            latent_params=2 * d * moe.latent_dim if moe and moe.latent_dim else 0,
            router_params=(
                d * moe.num_experts + (moe.num_experts if moe.router.bias else 0) + (moe.num_experts if moe.router.correction_bias else 0)
            ) if moe else 0,
            shared_params=(3 * d * moe.shared.width + (d if moe.shared.gated else 0)) if moe and moe.shared else 0,
            norm_params=norm * ((layer.mixer is not None) + (layer.ffn is not None)),
            mixer_vector_params=vectors,
            expert_vector_params=2 * moe.width + work_dim if moe and moe.bias else 0,
            dense_vector_params=2 * dense.width + d if dense and dense.bias else 0,
        )  # fmt: skip
        counted[kind] = counted.get(kind, 0) + 1
    return ModelShape(
        kinds=tuple(replace(kind, count=count) for kind, count in counted.items()),
        d_model=d,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        embedding_params=spec.vocab_size * d,
        head_params=spec.vocab_size * d + (spec.vocab_size if spec.head_bias else 0),
        tied=spec.tied_embeddings,
        final_norm_params=norm,
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
