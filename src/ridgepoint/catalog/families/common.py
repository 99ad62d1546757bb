"""What families share when they read a config: sizes, attention, layers, the outer model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ridgepoint.catalog.families.reader import ConfigReader
from ridgepoint.catalog.families.rope import read_rope
from ridgepoint.catalog.families.weights import Piece
from ridgepoint.catalog.spec import (
    Activation,
    DenseSpec,
    GqaSpec,
    LayerSpec,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    PlainResidual,
    RouterSpec,
    SharedExpertSpec,
    SwiGlu,
)
from ridgepoint.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Family:
    """`read` makes the spec (and must have looked at every key), `pieces` the weight map, `extra` the patterns of
    tensors a checkpoint may carry that plain decoding does not use (multi-token-prediction layers)."""

    name: str
    read: Callable[[ConfigReader], ModelSpec]
    pieces: Callable[[ModelSpec], Iterator[Piece]]
    extra: Callable[[ModelSpec], tuple[str, ...]] = lambda spec: (r".*\.rotary_emb\.inv_freq",)


def silu(c: ConfigReader, key: str = "hidden_act") -> Activation:
    """The only plain activation these families use; any other name is refused."""
    activation: Activation = c.choice(key, {"silu": SwiGlu(), "swish": SwiGlu()}, "silu")
    return activation


def read_gqa(
    c: ConfigReader,
    *,
    qk_norm: Literal["none", "per_head", "full"] = "none",
    qkv_bias: bool = False,
    o_bias: bool = False,
    sinks: bool = False,
    scale: float | None = None,
    head_dim: int | None = None,
    theta: float | None = 10_000.0,
    partial: float = 1.0,
    rotary_dim: int | None = None,
    qkv_clip: float | None = None,
) -> GqaSpec:
    """Grouped-query attention from the common keys. A head width that is not stated is `hidden_size / heads`."""
    heads = c.integer("num_attention_heads")
    kv_heads = c.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise c.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    width = c.integer("head_dim", default=head_dim or max(1, c.integer("hidden_size") // heads))
    rope = read_rope(c, width, theta=theta, partial=partial, rotary_dim=rotary_dim)
    return GqaSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        v_head_dim=width,
        scale=width**-0.5 if scale is None else scale,
        rope=rope.spec,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
        sinks=sinks,
        qkv_clip=qkv_clip,
        output_gate="none",
        v_from_k=False,
    )


def read_mla(c: ConfigReader, *, interleaved: bool) -> MlaSpec:
    """DeepSeek's latent attention. `head_dim` and `qk_head_dim` restate other keys and are checked."""
    heads, nope, rope_dim = (
        c.integer("num_attention_heads"),
        c.integer("qk_nope_head_dim"),
        c.integer("qk_rope_head_dim"),
    )
    c.expect("num_key_value_heads", heads)
    c.expect("qk_head_dim", nope + rope_dim)
    if c.get("head_dim", rope_dim) not in (rope_dim, nope + rope_dim):
        raise c.refuse("head_dim", c.get("head_dim"), str(rope_dim))
    rope = read_rope(c, rope_dim, theta=10_000.0, interleaved=interleaved)
    return MlaSpec(
        num_heads=heads,
        q_rank=c.integer("q_lora_rank") if c.has("q_lora_rank") else c.get("q_lora_rank"),
        kv_rank=c.integer("kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rope_dim,
        v_dim=c.integer("v_head_dim"),
        scale=(nope + rope_dim) ** -0.5 * rope.softmax_scale,
        rope=rope.spec,
        bias=c.flag("attention_bias", False),
        output_gate="none",
    )


def router(
    scores: Literal["softmax", "sigmoid", "softmax_topk", "sparsemixer"],
    *,
    normalise: bool,
    scale: float = 1.0,
    bias: bool = False,
    correction_bias: bool = False,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: Literal["max", "top2_sum"] = "max",
    jitter_eps: float | None = None,
) -> RouterSpec:
    return RouterSpec(
        scores=scores,
        normalise=normalise,
        scale=scale,
        bias=bias,
        correction_bias=correction_bias,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=group_score,
        jitter_eps=jitter_eps,
    )


def groups(c: ConfigReader, num_experts: int, top_k: int) -> tuple[int, int]:
    """`(n_group, topk_group)`, which must divide the experts and leave enough to choose from."""
    n, best = c.integer("n_group", default=1), c.integer("topk_group", default=1)
    if num_experts % n or best > n:
        raise CheckpointError(f"{c.family} config: n_group {n} and topk_group {best} do not fit {num_experts} experts")
    if best * (num_experts // n) < top_k:
        raise CheckpointError(
            f"{c.family} config: {best} groups of {num_experts // n} experts hold fewer than top-{top_k}"
        )
    return n, best


def check_top_k(c: ConfigReader, num_experts: int, top_k: int) -> None:
    if top_k > num_experts:
        raise c.refuse("num_experts_per_tok", top_k, f"1 to {num_experts}")


def read_top_k(c: ConfigReader, *keys: str, experts: int | None = None, top_k: int | None = None) -> tuple[int, int]:
    """`(experts, experts per token)`, the former under the first of `keys` present; defaults where the family has them."""
    num_experts, chosen = c.integer(*keys, default=experts), c.integer("num_experts_per_tok", default=top_k)
    check_top_k(c, num_experts, chosen)
    return num_experts, chosen


def plain_moe(
    c: ConfigReader,
    num_experts: int,
    top_k: int,
    *,
    width: int,
    router: RouterSpec,
    shared: SharedExpertSpec | None = None,
) -> MoeSpec:
    """Experts as most families have them: SwiGLU without biases, in the model's own width."""
    return MoeSpec(
        num_experts=num_experts,
        top_k=top_k,
        width=width,
        activation=silu(c),
        bias=False,
        router=router,
        shared=shared,
        latent_dim=None,
        latent_norm=False,
    )


def plain_dense(c: ConfigReader) -> DenseSpec:
    return DenseSpec(width=c.integer("intermediate_size"), activation=silu(c), bias=False)


def shared_experts(c: ConfigReader, width: int, *, default: int) -> SharedExpertSpec | None:
    """`n_shared_experts` of one width are one expert of their joint width."""
    count = c.count("n_shared_experts", default)
    return SharedExpertSpec(width=width * count, gated=False) if count else None


def deepseek_v3_moe(c: ConfigReader, *, scale: float) -> MoeSpec:
    """DeepSeek-V3's mixture, which others took over: sigmoid scores, a correction bias, groups ranked by their best two
    experts. `scale` stands where the config has none."""
    (experts, top_k), width = read_top_k(c, "n_routed_experts"), c.integer("moe_intermediate_size")
    num_groups, topk_groups = groups(c, experts, top_k)
    scores = router(
        "sigmoid",
        normalise=c.flag("norm_topk_prob", True),
        scale=c.number("routed_scaling_factor", scale),
        correction_bias=True,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score="top2_sum",
    )
    return plain_moe(c, experts, top_k, width=width, router=scores, shared=shared_experts(c, width, default=1))


def dense_then_moe(c: ConfigReader, mixer: GqaSpec | MlaSpec, moe: MoeSpec, *, default: int) -> list[LayerSpec]:
    """The first `first_k_dense_replace` layers dense, the others `moe`."""
    dense, first = plain_dense(c), c.count("first_k_dense_replace", default)
    return [layer(mixer, dense if i < first else moe) for i in range(c.integer("num_hidden_layers"))]


def layer(mixer: GqaSpec | MlaSpec, ffn: DenseSpec | MoeSpec, window: int | None = None) -> LayerSpec:
    return LayerSpec(mixer=mixer, ffn=ffn, window=window, indexer=None, kv_from_layer=None, post_norms=False)


def layer_windows(c: ConfigReader, num_layers: int, window: int | None, default: Sequence[str]) -> list[int | None]:
    """The window of each layer from `layer_types` (or `default`, a type per layer)."""
    types = c.get("layer_types", list(default))
    if not isinstance(types, list) or len(types) != num_layers:
        raise c.refuse("layer_types", types, f"a list of {num_layers}")
    windows: list[int | None] = []
    for kind in types:
        if kind == "full_attention":
            windows.append(None)
        elif kind == "sliding_attention" and window:
            windows.append(window)
        else:
            raise CheckpointError(
                f"{c.family} config: layer type {kind!r} (window {window}) is not supported; allowed: full_attention, sliding_attention"
            )
    return windows


def model(
    c: ConfigReader,
    layers: Sequence[LayerSpec],
    *,
    eps: float,
    norm: Literal["rms", "layer"] = "rms",
    tied: bool = False,
    head_bias: bool = False,
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
) -> ModelSpec:
    """The outer facts; `tied` and `eps` stand where the family has a default."""
    return ModelSpec(
        family=c.family,
        vocab_size=c.integer("vocab_size"),
        d_model=c.integer("hidden_size"),
        layers=tuple(layers),
        norm=NormSpec(kind=norm, eps=c.number("rms_norm_eps", eps)),
        tied_embeddings=c.flag("tie_word_embeddings", tied),
        head_bias=head_bias,
        embedding_scale=embedding_scale,
        residual=PlainResidual(),
        residual_scale=residual_scale,
        logit_scale=logit_scale,
        max_context=c.integer("max_position_embeddings"),
        bos_ids=c.token_ids("bos_token_id"),
        eos_ids=c.token_ids("eos_token_id"),
    )


def mtp_extra(spec: ModelSpec) -> tuple[str, ...]:
    """Layers past the last are multi-token-prediction modules: real weights, unused by plain decoding."""
    return (r".*\.rotary_emb\.inv_freq", rf"model\.layers\.(?:{_from(spec.num_layers)})\..*")


def _from(first: int) -> str:
    return "|".join(str(i) for i in range(first, first + 16))
