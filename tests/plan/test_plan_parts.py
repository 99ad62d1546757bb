"""The planner's parts by themselves: layouts, the Pareto filter, the queue, the table of numbers, validation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import Precision, shape_of, usable_bytes, weight_bytes_per_chip
from ridgepoint.cost.queueing import mg1_wait_s, worst_wait_s
from ridgepoint.errors import ConfigError, PlanError
from ridgepoint.plan.layouts import enumerate_layouts, smallest_layout
from ridgepoint.plan.named import named_model
from ridgepoint.plan.numbers import numbers
from ridgepoint.plan.points import pareto
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.queue import MAX_UTILISATION, mean_wait, wait_quantile
from ridgepoint.plan.workload import Goal, Workload


@pytest.mark.parametrize(
    ("model", "chip", "most"),
    [
        ("deepseek-v3", "h200", 64),
        ("minimax-m2", "gb200", 144),
        ("gpt-oss-120b", "h100", 16),
        ("llama-3.1-70b", "h200", 16),
    ],
)
def test_layouts_divide_what_they_split(model: str, chip: str, most: int) -> None:
    spec, hardware = model_spec(model), accelerator(chip)
    degrees = enumerate_layouts(spec, hardware, most)
    heads = {layer.mixer.num_heads for layer in spec.layers}  # type: ignore[union-attr]
    experts = {layer.ffn.num_experts for layer in spec.layers if hasattr(layer.ffn, "num_experts")}
    assert len(degrees) == len(set(zip(degrees.tp, degrees.dp_attention, degrees.ep, degrees.pp, strict=True)))
    stage = degrees.tp * degrees.dp_attention
    assert (degrees.tp <= (hardware.scaleup_domain_chips or 1)).all()
    assert (degrees.chips <= most).all()
    assert ((stage % degrees.ep) == 0).all()
    for count in heads:
        assert (count % degrees.tp == 0).all()
    for count in experts:
        assert (count % degrees.ep == 0).all()
    if not experts:
        assert (degrees.dp_attention == 1).all()


def test_smallest_layout_holds_the_weights() -> None:
    spec, chip, precision = model_spec("deepseek-v3"), accelerator("h200"), Precision.named("fp8")
    layout = smallest_layout(spec, chip, precision)
    assert layout.chips == 8
    assert weight_bytes_per_chip(spec, precision, layout) <= 0.75 * usable_bytes(chip, layout)
    with pytest.raises(PlanError, match="do not fit"):
        smallest_layout(spec, accelerator("t4"), Precision.named("fp32"))


@settings(max_examples=60, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(0, 6)))
def test_pareto_agrees_with_its_definition(table: np.ndarray) -> None:
    values = [table[:, column].astype(float) for column in range(table.shape[1])]
    kept = set(pareto(values).tolist())
    rows = [tuple(row) for row in table.tolist()]

    def beaten(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(rows[j], rows[i], strict=True)) and rows[j] != rows[i] for j in range(len(rows))
        )

    assert {rows[i] for i in kept} == {rows[i] for i in range(len(rows)) if not beaten(i)}
    assert len({rows[i] for i in kept}) == len(kept)  # of equals, one


def test_two_intervals_is_the_worst_wait() -> None:
    assert worst_wait_s(0.020) == pytest.approx(0.040)


def test_the_queue_refuses_near_saturation_and_is_the_cost_models() -> None:
    for rho in (0.1, 0.5, 0.8):
        assert float(mean_wait(rho, 2.0)) == pytest.approx(mg1_wait_s(rho, 2.0, 1.0))
    assert np.isinf(mean_wait(MAX_UTILISATION, 1.0))
    assert np.isinf(wait_quantile(0.99, 1.0, 0.9))
    assert wait_quantile(0.05, 1.0, 0.9) == 0.0  # nineteen in twenty find nobody before them


@settings(max_examples=8, deadline=None)
@given(rho=st.floats(0.1, 0.85), seed=st.integers(0, 100))
def test_the_queue_agrees_with_a_simulated_one(rho: float, seed: int) -> None:
    """Lindley's recursion, random arrivals and lengths; correlated waits leave the mean of 200,000 within a third."""
    rng = np.random.default_rng(seed)
    steps = rng.exponential(1.0, 200_000) - rng.exponential(1.0 / rho, 200_000)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    waits = total - np.minimum.accumulate(total)
    assert waits.mean() == pytest.approx(float(mean_wait(rho, 1.0)), rel=0.33, abs=0.02)
    assert np.quantile(waits, 0.9) == pytest.approx(float(wait_quantile(rho, 1.0, 0.9)), rel=0.33, abs=0.05)


def test_every_number_has_ends_a_unit_and_a_source() -> None:
    rows = numbers([accelerator("h100"), accelerator("gb200")], [named_model("deepseek-v3")])
    assert {row.section for row in rows} == {
        "energy",
        "latency",
        "ridge points",
        "links",
        "memory tiers",
        "models",
        "floors",
    }
    for row in rows:
        assert 0 < row.low <= row.high and row.unit and row.how and row.provenance in ("spec", "estimate", "measure"), (
            row
        )
    found = {row.what: row for row in rows}
    assert found["h100-sxm fp8"].low == pytest.approx(1978.9e12 / 3.35e12)
    assert found["h100-sxm: scale-up over scale-out"].low == pytest.approx(9.0)
    assert found["deepseek-v3: KV bytes per token (bf16)"].low == 70272


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": 0}, {"output_tokens": -1}, {"prefix_hit_frac": 50}, {"users": 0}, {"requests_per_s": -2.0}, {"users": 3, "requests_per_s": 1.0},
        {"draft_tokens": 3}, {"acceptance": 1.0}, {"think_time_s": -1.0}, {"rollouts": 0}, {"mean_pause_s": 0.0},
    ],
)  # fmt: skip
def test_contradictory_workloads_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Workload(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"tpot_s": -0.1},
        {"ttft_s": 0.0},
        {"minimise": "joy"},
        {"confidence": 0.3},
        {"confidence": 1.0},
        {"chips": 0},
        {"context": -5},
    ],
)
def test_impossible_goals_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Goal(**changes)  # type: ignore[arg-type]


def test_pools_are_parsed_or_refused() -> None:
    pool = parse_pool("h200:16", "fp8", rents={"h200": 2.0})
    assert (pool.count, pool.usd_per_hour) == (16, (2.0, 2.0, 2.0))
    for text in ("h200:0", "h200:x", "nothing"):
        with pytest.raises(Exception, match=r"count|number|unknown"):
            parse_pool(text, "fp8")


def test_speculation_yields_the_geometric_sum() -> None:
    work = Workload(draft_tokens=3, acceptance=0.8)
    assert work.tokens_per_step == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert Workload().tokens_per_step == 1.0


QWEN3 = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "rope_scaling": None, "max_position_embeddings": 40960, "tie_word_embeddings": False, "hidden_act": "silu",
    "attention_bias": False, "use_sliding_window": False, "sliding_window": None, "bos_token_id": 151643, "eos_token_id": 151645,
    "torch_dtype": "bfloat16", "attention_dropout": 0.0,
}  # fmt: skip


def test_a_config_json_is_a_model_too(tmp_path: Path) -> None:
    """The same shapes as the catalogue's table of them, from the file a loader reads."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    mine, known = named_model(str(tmp_path)), named_model("qwen3-30b-a3b")
    assert named_model(str(tmp_path / "config.json")).spec == mine.spec
    assert shape_of(mine.spec).total_params == shape_of(known.spec).total_params
    assert shape_of(mine.spec).active_params == shape_of(known.spec).active_params
    with pytest.raises(ConfigError, match="no model configuration"):
        named_model(str(tmp_path / "other" / "config.json"))
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ConfigError, match="not valid JSON"):
        named_model(str(tmp_path))
