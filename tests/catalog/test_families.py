"""Reading configs: published models have their published size, every spelling means one thing, the unknown is refused."""

from __future__ import annotations

import copy
from itertools import pairwise
from math import prod
from typing import Any

import pytest
from published_configs import PUBLISHED

from ridgepoint.catalog.families import FAMILIES, CheckpointConfig, read_checkpoint_config, spec_from_config
from ridgepoint.catalog.spec import (
    DenseSpec,
    GqaSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    YarnScaling,
)
from ridgepoint.errors import CheckpointError


def config(name: str, **changes: Any) -> dict[str, Any]:
    base = copy.deepcopy(PUBLISHED[name][1])
    base.update(changes)
    return {key: value for key, value in base.items() if value != "absent"}


def gqa(spec: ModelSpec, layer: int = 0) -> GqaSpec:
    mixer = spec.layers[layer].mixer
    assert isinstance(mixer, GqaSpec)
    return mixer


def moe(spec: ModelSpec) -> MoeSpec:
    ffn = spec.layers[-1].ffn
    assert isinstance(ffn, MoeSpec)
    return ffn


# ---------------------------------------------------------------- what published models are


def num_params(checkpoint: CheckpointConfig) -> int:
    return sum({piece.tensor: prod(piece.shape) for piece in checkpoint.pieces}.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_size(name: str) -> None:
    """To a millionth: publishers differ in whether router correction biases count."""
    published, raw = PUBLISHED[name]
    assert abs(num_params(read_checkpoint_config(raw)) - published) <= 1e-6 * published


def test_every_family_is_published_here() -> None:
    assert {raw["model_type"] for _, raw in PUBLISHED.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_pieces_fill_every_parameter_exactly_once(name: str) -> None:
    """Regions of one parameter neither overlap nor leave a gap (widths by the stored shapes, no tensors involved)."""
    pieces = read_checkpoint_config(PUBLISHED[name][1]).pieces
    regions: dict[tuple[str, int | None], list[tuple[int, int]]] = {}
    for piece in pieces:
        if piece.rows is not None:
            regions.setdefault((piece.param, piece.index), []).append(piece.rows)
        else:
            key = (piece.param, piece.index)
            assert key not in regions, f"{piece.tensor} fills {key} again"
            regions[key] = []
    for key, rows in regions.items():
        edges = sorted(rows)
        for (_, stop), (start, _) in pairwise(edges):
            assert stop == start, key
        assert not edges or edges[0][0] == 0


def test_facts_of_some_published_models() -> None:
    v3 = spec_from_config(config("DeepSeek-V3"))
    mixer = v3.layers[0].mixer
    assert isinstance(mixer, MlaSpec) and isinstance(v3.layers[2].ffn, DenseSpec)
    assert (mixer.q_rank, mixer.kv_rank, mixer.rope.interleaved) == (1536, 512, True)
    assert mixer.scale == pytest.approx(192**-0.5 * (0.1 * 3.6888794541139363 + 1) ** 2)  # ln 40
    router = moe(v3).router
    assert (router.scores, router.num_groups, router.topk_groups, router.group_score) == ("sigmoid", 8, 4, "top2_sum")
    assert isinstance(mixer.rope.scaling, YarnScaling) and mixer.rope.scaling.attention_factor == 1.0

    oss = spec_from_config(config("gpt-oss-20b"))
    assert [layer.window for layer in oss.layers[:4]] == [128, None, 128, None]
    assert gqa(oss).sinks and gqa(oss).o_bias and moe(oss).bias and oss.eos_ids == (200002,)
    glm = spec_from_config(config("GLM-4.5-Air"))
    rope = gqa(glm).rope
    assert rope is not None and rope.rotary_dim == 64 and gqa(glm).qk_norm == "none" and gqa(glm).qkv_bias
    granite = spec_from_config(config("granite-3.0-1b-a400m"))
    assert (granite.embedding_scale, granite.residual_scale, granite.logit_scale) == (12.0, 0.22, 1 / 6.0)
    assert gqa(granite).scale == 0.015625 and granite.tied_embeddings
    phi = spec_from_config(config("Phi-3.5-MoE"))
    assert phi.norm.kind == "layer" and phi.head_bias and moe(phi).router.jitter_eps == 0.01
    m2 = spec_from_config(config("MiniMax-M2"))
    rope = gqa(m2).rope
    assert rope is not None and rope.rotary_dim == 64 and gqa(m2).qk_norm == "full"


# ---------------------------------------------------------------- spellings


def test_old_and_new_rope_spellings_mean_the_same() -> None:
    old = config("Llama-3.1-8B")
    new = copy.deepcopy(old)
    new["rope_parameters"] = {**new.pop("rope_scaling"), "rope_theta": new.pop("rope_theta")}
    legacy = copy.deepcopy(old)
    legacy["rope_scaling"]["type"] = legacy["rope_scaling"].pop("rope_type")
    assert spec_from_config(old) == spec_from_config(new) == spec_from_config(legacy)
    with pytest.raises(CheckpointError, match="rope_theta is stated twice"):
        spec_from_config({**old, "rope_parameters": {"rope_theta": 1.0}})


def test_expert_counts_may_carry_either_name_but_not_two_values() -> None:
    base = config("Qwen3-30B-A3B", num_experts="absent", num_local_experts=128)
    assert moe(spec_from_config(base)).num_experts == 128
    with pytest.raises(CheckpointError, match="they name one fact"):
        spec_from_config({**base, "num_experts": 64})


@pytest.mark.parametrize(
    ("scaling", "kind"),
    [
        ({"rope_type": "linear", "factor": 2.0}, LinearScaling),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, YarnScaling),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64,
             "original_max_position_embeddings": 8192},
            LongRopeScaling,
        ),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192},
            Llama3Scaling,
        ),
    ],
)  # fmt: skip
def test_rope_scalings(scaling: dict[str, Any], kind: type) -> None:
    rope = gqa(spec_from_config(config("Qwen3-8B", rope_scaling=scaling))).rope
    assert rope is not None and isinstance(rope.scaling, kind)


def test_windows() -> None:
    on = spec_from_config(config("Qwen3-8B", use_sliding_window=True, sliding_window=100, max_window_layers=30))
    assert [layer.window for layer in on.layers] == [None] * 30 + [100] * 6
    off = spec_from_config(config("Qwen3-8B", sliding_window=4096))
    assert {layer.window for layer in off.layers} == {None}
    mixtral = spec_from_config(config("Mixtral-8x7B", sliding_window=4096))
    assert {layer.window for layer in mixtral.layers} == {4096}


def test_dense_layers_among_experts() -> None:
    spec = spec_from_config(config("Qwen3-30B-A3B", mlp_only_layers=[3], decoder_sparse_step=2))
    sparse = [i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, MoeSpec)]
    assert sparse == [i for i in range(48) if i % 2 == 1 and i != 3]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Qwen3-8B", {"model_type": "mamba"}, "model type 'mamba' is not supported; allowed: llama"),
        ("Qwen3-8B", {"model_type": "absent"}, "model type None is not supported"),
        ("Qwen3-8B", {"rope_scaling": {"rope_type": "foo"}}, "rope type 'foo' is not supported; allowed: default, linear"),
        ("Qwen3-8B", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("Qwen3-8B", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "bend": 1}}, "keys of rope type 'linear'.*bend"),
        ("Qwen3-8B", {"rope_scaling": {"rope_type": "linear"}}, "factor None"),
        ("Qwen3-8B", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "a list of 64"),
        ("Qwen3-8B", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; allowed: silu"),
        ("Qwen3-8B", {"layer_types": ["full_attention"] * 35 + ["linear_attention"]}, "layer type 'linear_attention'"),
        ("Qwen3-8B", {"use_gate": True}, "keys not understood: use_gate=True"),
        ("Qwen3-8B", {"num_attention_heads": "absent"}, "key num_attention_heads is missing"),
        ("Qwen3-8B", {"num_attention_heads": 30}, "a divisor of num_attention_heads"),
        ("Qwen3-8B", {"hidden_size": "wide"}, "hidden_size 'wide' is not supported; allowed: a positive integer"),
        ("Qwen3-8B", {"tie_word_embeddings": 1}, "tie_word_embeddings 1 is not supported; allowed: true or false"),
        ("Qwen3-8B", {"eos_token_id": "</s>"}, "eos_token_id '</s>'"),
        ("Qwen3-30B-A3B", {"num_experts_per_tok": 129}, "num_experts_per_tok 129"),
        ("DeepSeek-V3", {"topk_method": "greedy"}, "topk_method 'greedy' is not supported; allowed: 'noaux_tc'"),
        ("DeepSeek-V3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("DeepSeek-V3", {"n_group": 7}, "n_group 7 and topk_group 4 do not fit 256"),
        ("DeepSeek-V3", {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ("DeepSeek-V3", {"index_topk": 2048, "index_n_heads": 64}, "keys not understood: index_n_heads=64, index_topk=2048"),
        ("DeepSeek-V2-Lite", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'.*greedy, group_limited_greedy"),
        ("DeepSeek-V2-Lite", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("Phi-3.5-MoE", {"num_experts_per_tok": 4}, "num_experts_per_tok 4 is not supported; allowed: 2"),
        ("MiniMax-M2", {"attn_type_list": [0] + [1] * 61}, "attn_type_list"),
        ("MiniMax-M2", {"rotary_dim": 63}, "rotary width 63"),
        ("MiniMax-M2", {"shared_intermediate_size": 64}, "shared_intermediate_size 64"),
        ("OLMoE-1B-7B", {"clip_qkv": "hard"}, "clip_qkv 'hard' is not supported; allowed: a number"),
        ("gpt-oss-20b", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_from_config(config(name, **changes))


def test_absent_and_generic_keys_are_no_reason_to_refuse() -> None:
    extra = {
        "use_gate": None,
        "_name_or_path": "x",
        "id2label": {"0": "a"},
        "tokenizer_class": "T",
        "auto_map": {"A": "b.C"},
    }
    assert spec_from_config(config("Qwen3-8B", **extra)) == spec_from_config(config("Qwen3-8B"))
