"""The step law: floats and arrays agree, nothing beats the floor, and the classic accounting traps stay shut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgepoint.catalog.hardware import Accelerator, accelerator
from ridgepoint.catalog.models import catalog_models, model_spec
from ridgepoint.catalog.spec import ModelSpec, MoeSpec
from ridgepoint.cost import (
    ROOFLINE,
    SERVING,
    Layout,
    Precision,
    StepBatch,
    filled_frac,
    kv_bytes_per_chip,
    links,
    max_sequences,
    memory_per_chip,
    step_cost,
    weight_bytes,
    weight_bytes_per_chip,
)  # fmt: skip
from ridgepoint.cost.amounts import step_amounts
from ridgepoint.cost.attention import mixer_flops, visible_pairs
from ridgepoint.cost.batch import Group
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.formats import bytes_per_value, matmul_type
from ridgepoint.cost.routing import busiest_rank, distinct_experts
from ridgepoint.cost.shape import shape_of
from ridgepoint.cost.step import MATRIX_OVER_VECTOR
from ridgepoint.cost.timer import batch_of
from ridgepoint.errors import CatalogError, ConfigError
from ridgepoint.sched.step import StepShape

H100, H200, GB200 = accelerator("h100"), accelerator("h200"), accelerator("gb200")


@pytest.mark.parametrize("name", catalog_models())
def test_arrays_equal_floats(name: str) -> None:
    spec, precision = model_spec(name), Precision.named("fp8")
    tp, dp, ep = np.array([1.0, 2.0, 4.0]), np.array([4.0, 1.0, 2.0]), np.array([2.0, 1.0, 8.0])
    sequences, context = np.array([3.0, 64.0, 500.0]), np.array([100.0, 5000.0, 20000.0])
    swept = step_cost(
        spec, GB200, Layout(tp=tp, dp_attention=dp, ep=ep), precision, StepBatch.decode(sequences, context), SERVING
    )
    joules = np.broadcast_to(swept.estimate_j, 3)
    for i in range(3):
        layout = Layout(tp=int(tp[i]), dp_attention=int(dp[i]), ep=int(ep[i]))
        one = step_cost(
            spec, GB200, layout, precision, StepBatch.decode(float(sequences[i]), float(context[i])), SERVING
        )
        assert isinstance(one.estimate_s, float)
        assert one.estimate_s == pytest.approx(float(swept.estimate_s[i]), rel=1e-9)
        assert one.estimate_j == pytest.approx(float(joules[i]), rel=1e-9)
        assert one.binds == swept.binds[i]
        assert one.floor_s <= one.estimate_low_s <= one.estimate_s <= one.estimate_high_s
        assert sum(one.roof_s.values()) == pytest.approx(one.estimate_s, rel=1e-9)


def test_the_roofline_calibration_reaches_the_floor_where_one_roof_binds() -> None:
    cost = step_cost(model_spec("llama-3.1-8b"), H100, Layout(), Precision(), StepBatch.prefill(8.0, 8000.0), ROOFLINE)
    assert cost.binds == "compute"
    assert cost.floor_s <= cost.estimate_s <= 1.1 * cost.floor_s


def test_mla_cache_is_not_divided_by_tp_and_gqa_stops_at_its_heads() -> None:
    precision = Precision()
    mla, gqa = model_spec("deepseek-v3"), model_spec("qwen3-235b-a22b")  # 4 KV heads
    one = kv_bytes_per_chip(mla, precision, Layout(tp=1), 1.0, 1000.0)
    assert kv_bytes_per_chip(mla, precision, Layout(tp=8), 1.0, 1000.0) == pytest.approx(one)
    at = {tp: kv_bytes_per_chip(gqa, precision, Layout(tp=tp), 1.0, 1000.0) for tp in (1, 2, 4, 8)}
    assert at[2] == pytest.approx(at[1] / 2) and at[4] == pytest.approx(at[1] / 4) and at[8] == pytest.approx(at[4])


def test_experts_are_not_charged_whole_to_every_chip() -> None:
    spec, precision = model_spec("deepseek-v3"), Precision.named("fp8")
    whole = weight_bytes(spec, precision)
    spread = weight_bytes_per_chip(spec, precision, Layout(tp=1, dp_attention=64, ep=64))
    assert spread < 0.05 * whole
    assert weight_bytes_per_chip(spec, precision, Layout(tp=8)) * 8 == pytest.approx(whole, rel=0.01)


def test_decode_is_not_divided_by_pipeline_stages() -> None:
    spec, precision = model_spec("llama-3.1-70b"), Precision()
    flat = step_cost(spec, H100, Layout(tp=2), precision, StepBatch.decode(8.0, 2000.0), SERVING)
    staged = step_cost(spec, H100, Layout(tp=2, pp=4), precision, StepBatch.decode(32.0, 2000.0), SERVING)
    assert staged.estimate_s >= 0.95 * flat.estimate_s


def test_kv_of_a_full_pipeline_does_not_shrink() -> None:
    """pp stages need pp times the sequences in flight, so a chip holds as much cache as before."""
    spec, precision = model_spec("llama-3.1-70b"), Precision()
    flat = kv_bytes_per_chip(spec, precision, Layout(tp=2), 16.0, 4000.0)
    assert kv_bytes_per_chip(spec, precision, Layout(tp=2, pp=8), 8 * 16.0, 4000.0) == pytest.approx(flat)


def test_batch_size_one_touches_top_k_experts_and_a_large_batch_all() -> None:
    assert distinct_experts(256, 8, 1.0) == pytest.approx(8.0)
    assert distinct_experts(256, 8, 10_000.0) == pytest.approx(256.0)
    assert distinct_experts(256, 8, 64.0, 3.0) < distinct_experts(256, 8, 64.0, 1.0)
    assert busiest_rank(1, 64.0, 256, 8) == 1.0
    assert 1.0 < busiest_rank(8, 10_000.0, 256, 8) < busiest_rank(8, 64.0, 256, 8) <= 8.0


def test_the_busiest_rank_is_what_drawing_shows() -> None:
    """Tokens choose distinct experts at random; the law's mean of the busiest rank's load and hits, against drawing it."""
    draw, ranks, experts, top_k, tokens = np.random.default_rng(3), 8, 128, 8, 32
    chosen = np.argsort(draw.random((400, tokens, experts)), axis=-1)[..., :top_k]
    pairs = np.stack([(chosen // (experts // ranks) == rank).sum((1, 2)) for rank in range(ranks)], axis=-1)
    mean = tokens * top_k / ranks
    assert busiest_rank(ranks, float(tokens), experts, top_k) == pytest.approx(pairs.max(-1).mean() / mean, rel=0.03)
    hits = np.zeros((400, experts), dtype=bool)
    np.put_along_axis(hits, chosen.reshape(400, -1), True, axis=-1)
    most = hits.reshape(400, ranks, -1).sum(-1)[np.arange(400), pairs.argmax(-1)].mean()
    busy = busiest_rank(ranks, float(tokens), experts, top_k)
    assert distinct_experts(experts, top_k, tokens * busy) / ranks == pytest.approx(most, rel=0.03)


def test_formats_carry_their_scales() -> None:
    assert bytes_per_value("mxfp4") == pytest.approx(4.25 / 8)
    assert bytes_per_value("nvfp4") == pytest.approx(4.5 / 8)
    assert bytes_per_value("int4") == pytest.approx(4.125 / 8)
    assert (matmul_type("mxfp4", "bf16"), matmul_type("fp8", "fp8"), matmul_type("int4", "bf16")) == (
        "bf16",
        "fp8",
        "bf16",
    )


def test_windows_cap_reads_and_pairs() -> None:
    assert visible_pairs(1.0, 1000.0, 128) == pytest.approx(128.0, rel=0.01)
    assert visible_pairs(1000.0, 0.0, None) == pytest.approx(500_000.0)
    exact = sum(min(p + 0.5, 128) for p in range(1000))
    assert visible_pairs(1000.0, 0.0, 128) == pytest.approx(exact, rel=0.01)


def test_mla_takes_the_cheaper_form() -> None:
    kind = next(k for k in shape_of(model_spec("deepseek-v3")).kinds)
    assert kind.mla is not None
    absorbed = 2.0 * 128 * (2 * 512 + 64)
    assert mixer_flops(kind, Group(count=1.0, new=1.0, cached=10_000.0)) == pytest.approx(absorbed * 10_000.5)
    expanded = 2.0 * 128 * (128 + 64 + 128)
    assert mixer_flops(kind, Group(count=1.0, new=4096.0, cached=0.0)) == pytest.approx(expanded * 4096 * 2048)


def test_sparse_attention_reads_top_k_and_scores_all() -> None:
    sparse = step_cost(
        model_spec("deepseek-v3.2"),
        H200,
        Layout(tp=8),
        Precision.named("fp8"),
        StepBatch.decode(8.0, 100_000.0),
        SERVING,
    )
    dense = step_cost(
        model_spec("deepseek-v3"), H200, Layout(tp=8), Precision.named("fp8"), StepBatch.decode(8.0, 100_000.0), SERVING
    )
    assert sparse.kv_bytes < 0.3 * dense.kv_bytes


def test_a_prompt_sits_on_one_rank() -> None:
    """Eight data-parallel ranks do not share one prompt's attention."""
    spec, precision = model_spec("deepseek-v3"), Precision.named("fp8")
    one = step_cost(spec, GB200, Layout(dp_attention=8, ep=8), precision, StepBatch.prefill(1.0, 4096.0), SERVING)
    eight = step_cost(spec, GB200, Layout(dp_attention=8, ep=8), precision, StepBatch.prefill(8.0, 4096.0), SERVING)
    attention = {
        c: next(t for t in cost.terms if t.name == "attention_weights").flops
        for c, cost in (("one", one), ("eight", eight))
    }
    assert attention["one"] == pytest.approx(attention["eight"])


def test_live_segments_equal_groups() -> None:
    spec, precision = model_spec("gpt-oss-120b"), Precision.named("mxfp4")
    live = StepBatch.from_segments([(1, 1000)] * 7 + [(512, 0)])
    planned = StepBatch.decode(7.0, 1000.0) + StepBatch.prefill(1.0, 512.0)
    first, second = (step_cost(spec, H200, Layout(), precision, batch, SERVING).estimate_s for batch in (live, planned))
    assert first == pytest.approx(second)


def test_unknown_facts_and_bad_layouts_are_refused_by_name() -> None:
    with pytest.raises(CatalogError, match="spec_scaleout_bytes_per_s is unknown"):
        step_cost(
            model_spec("llama-3.1-8b"),
            accelerator("m3-ultra"),
            Layout(tp=2, domain_chips=1),
            Precision(),
            StepBatch.decode(1.0, 10.0),
            SERVING,
        )
    with pytest.raises(ConfigError, match="ep 3 does not divide the stage's 8 chips"):
        Layout(tp=8, ep=3)
    with pytest.raises(ConfigError, match="tp must be a whole number of at least 1"):
        Layout(tp=0)
    with pytest.raises(ConfigError, match="count must not be negative"):
        StepBatch.decode(-1.0, 10.0)
    with pytest.raises(ConfigError, match="unknown number format 'fp5'"):
        Precision(kv="fp5")
    free = step_cost(
        model_spec("llama-3.1-8b"), accelerator("m3-ultra"), Layout(), Precision(), StepBatch.decode(1.0, 10.0), SERVING
    )
    with pytest.raises(CatalogError, match="usd_per_hour is unknown"):
        _ = free.estimate_usd
    with pytest.raises(CatalogError, match="spec_tdp_w is unknown"):
        _ = free.estimate_j


def test_sram_resident_layout_needs_and_uses_sram() -> None:
    groq, spec, precision = accelerator("groq-lpu1"), model_spec("llama-3.1-8b"), Precision.named("int8")
    with pytest.raises(
        CatalogError, match="spec_scaleup_bytes_per_s is unknown, and a layout over several chips needs it"
    ):
        step_cost(spec, groq, Layout(tp=64, sram=True), precision, StepBatch.decode(1.0, 1000.0), SERVING)
    groq = replace(groq, spec_scaleup_bytes_per_s=100e9)
    layout = Layout(tp=64, sram=True)
    assert max_sequences(spec, precision, layout, groq, context=1000.0, step_tokens=1.0) > 1
    cost = step_cost(
        spec, groq, layout, precision, StepBatch.decode(1.0, 1000.0), ROOFLINE.adjusted(kernel_overhead_s=1e-6)
    )
    assert cost.binds in ("overhead", "links", "compute")  # 80 TB/s a chip: bytes no longer bind
    with pytest.raises(CatalogError, match="spec_sram_bytes_per_s is unknown"):
        step_cost(spec, H100, Layout(tp=8, sram=True), precision, StepBatch.decode(1.0, 10.0), SERVING)


def test_weights_in_sram_and_cache_in_main_memory_have_a_capacity_and_a_speed_each() -> None:
    chip, spec, precision = accelerator("tpu-v5e"), model_spec("qwen3-8b"), Precision.named("int8")
    main, split, all_sram = (
        Layout(tp=32, pp=8, sram=sram, kv_in_sram=kv) for sram, kv in ((False, True), (True, False), (True, True))
    )
    sequences = [
        float(max_sequences(spec, precision, layout, chip, context=4000.0, step_tokens=1.0))
        for layout in (main, split, all_sram)
    ]
    assert sequences[2] >= 1
    assert sequences[0] >= sequences[1] * 0.95 > 20 * sequences[2]  # the cache has main memory to itself
    assert (
        max_sequences(spec, precision, Layout(tp=8, sram=True, kv_in_sram=False), chip, context=1.0, step_tokens=1.0)
        < 0
    )
    batch = StepBatch.decode(4.0, 4000.0)
    steps = [step_cost(spec, chip, layout, precision, batch, ROOFLINE) for layout in (main, split, all_sram)]
    assert steps[0].estimate_s > 3 * steps[1].estimate_s and steps[1].estimate_s > 3 * steps[2].estimate_s
    assert steps[0].sram_bytes == 0 and steps[2].sram_bytes == steps[2].memory_bytes
    assert steps[1].sram_bytes == steps[1].memory_bytes - steps[1].kv_bytes
    kv_s = steps[1].kv_bytes / chip.need("spec_memory_bytes_per_s", "")
    assert steps[1].floor_s == pytest.approx(max(kv_s, steps[1].weight_bytes / chip.need("spec_sram_bytes_per_s", "")))
    parts = memory_per_chip(spec, precision, split, sequences=sequences[1], context=4000.0, step_tokens=1.0)
    assert filled_frac(parts, chip, split) == pytest.approx(1.0)


def test_a_byte_from_sram_takes_less_energy() -> None:
    chip = replace(accelerator("tpu-v5e"), spec_tdp_w=200.0)
    batch = StepBatch.decode(1.0, 1000.0)
    main, sram = (
        step_cost(
            model_spec("qwen3-8b"), chip, Layout(tp=32, pp=4, sram=sram), Precision.named("int8"), batch, ROOFLINE
        )
        for sram in (False, True)
    )
    static = 128 * 200.0 * main.energy.static_frac
    assert sram.estimate_j - static * sram.estimate_s < 0.3 * (main.estimate_j - static * main.estimate_s)


def test_power_stays_between_static_and_the_boards_limit() -> None:
    cost = step_cost(
        model_spec("llama-3.1-70b"), H100, Layout(tp=8), Precision(), StepBatch.prefill(8.0, 8000.0), SERVING
    )
    assert 8 * 700 * 0.5 < cost.estimate_w <= 8 * 700 * (1 + 1e-12)


def test_layers_that_share_a_cache_store_none_and_read_as_much() -> None:
    spec = model_spec("llama-3.1-8b")
    shared = replace(
        spec,
        layers=tuple(replace(layer, kv_from_layer=i - 1) if i % 2 else layer for i, layer in enumerate(spec.layers)),
    )
    precision, batch = Precision(), StepBatch.decode(8.0, 10_000.0)
    assert kv_bytes_per_chip(shared, precision, Layout(), 1.0, 1000.0) == pytest.approx(
        0.5 * kv_bytes_per_chip(spec, precision, Layout(), 1.0, 1000.0)
    )
    read = [step_cost(s, H100, Layout(), precision, batch, SERVING).kv_bytes for s in (spec, shared)]
    assert read[1] == pytest.approx(read[0], rel=1e-3)
    assert shape_of(shared).total_params < shape_of(spec).total_params  # no key and value projections there


def test_latent_width_experts_are_smaller_and_send_less() -> None:
    spec = model_spec("qwen3-30b-a3b")
    narrow = replace(
        spec, layers=tuple(replace(layer, ffn=replace(layer.ffn, latent_dim=1024) if isinstance(layer.ffn, MoeSpec) else layer.ffn) for layer in spec.layers)
    )  # fmt: skip
    assert shape_of(narrow).expert_params == shape_of(spec).expert_params // 2
    layout, batch = Layout(dp_attention=8, ep=8), StepBatch.decode(512.0, 1000.0)
    sent = [step_cost(s, GB200, layout, Precision(), batch, SERVING).link_bytes for s in (spec, narrow)]
    assert sent[1] == pytest.approx(sent[0] / 2)


def test_narrow_operands_reach_less_of_their_peak() -> None:
    """Half the narrow efficiency doubles the time of an fp8 product that compute binds, and leaves bf16 alone."""
    spec, batch = model_spec("llama-3.1-8b"), StepBatch.prefill(8.0, 8000.0)
    half = replace(ROOFLINE, narrow_efficiency=0.5)

    def ffn_s(precision: str, calibration: Calibration) -> float:
        terms = step_cost(spec, H100, Layout(), Precision.named(precision), batch, calibration).terms
        return float(next(term.seconds for term in terms if term.name == "ffn"))

    assert ffn_s("fp8", half) == pytest.approx(2 * ffn_s("fp8", ROOFLINE), rel=0.01)
    assert ffn_s("bf16", half) == ffn_s("bf16", ROOFLINE)


def test_the_latency_of_an_exchange_grows_with_the_depth_of_its_tree() -> None:
    spec, batch = model_spec("qwen3-32b"), StepBatch.decode(8.0, 1000.0)
    slow = replace(ROOFLINE, collective_overhead_s=1e-5)

    def waits_s(tp: float) -> float:
        terms = step_cost(spec, GB200, Layout(tp=tp), Precision(), batch, slow).terms
        return float(next(term.seconds for term in terms if term.name == "collectives"))

    assert waits_s(1.0) == 0.0
    assert waits_s(2.0) == pytest.approx(2 * 64 * 1e-5)  # two all-reduces in each of 64 layers
    assert waits_s(8.0) == pytest.approx(3 * waits_s(2.0))


def test_an_all_to_all_through_a_switch_is_as_late_whatever_its_ranks() -> None:
    """Two rounds a dispatch and two a combine; a torus passes tokens on, round by round."""
    slow = replace(ROOFLINE, collective_overhead_s=1e-5)
    spec = model_spec("deepseek-v3")
    sparse_layers = sum(isinstance(layer.ffn, MoeSpec) for layer in spec.layers)

    def latency_s(chip: str, ranks: float) -> float:
        layout = Layout(dp_attention=ranks, ep=ranks)
        terms = step_cost(
            spec, accelerator(chip), layout, Precision.named("fp8"), StepBatch.decode(256.0, 100.0), slow
        ).terms
        return float(next(term.seconds for term in terms if term.name == "collectives"))

    for ranks in (4.0, 8.0, 64.0):
        assert latency_s("gb200", ranks) == pytest.approx(sparse_layers * 2 * 2 * 1e-5)
    assert latency_s("tpu-v5p", 64.0) == pytest.approx(sparse_layers * 2 * 6 * 1e-5)


@pytest.mark.parametrize("layout", [Layout(dp_attention=16, ep=16), Layout(tp=16)])
def test_an_exchange_beyond_the_domain_pays_the_networks_latency(layout: Layout) -> None:
    """Once an exchange, and on no wire of a rack that holds all ranks."""
    far = replace(ROOFLINE, hop_latency_s=1e-5)
    spec = model_spec("deepseek-v3")
    kinds = [(layer.ffn, layer.mixer) for layer in spec.layers]
    exchanges = 2 * (len(kinds) if layout.tp > 1 else sum(isinstance(ffn, MoeSpec) for ffn, _ in kinds))

    def seconds(chip: str, constants: Calibration) -> float:
        cost = step_cost(
            spec, accelerator(chip), layout, Precision.named("fp8"), StepBatch.decode(256.0, 100.0), constants
        )
        return float(cost.estimate_s)

    assert seconds("h200", far) - seconds("h200", ROOFLINE) == pytest.approx(exchanges * 1e-5)
    assert seconds("gb200", far) == seconds("gb200", ROOFLINE)


def test_native_4_bit_operands_need_no_unpacking() -> None:
    """Blackwell multiplies 4-bit by 8-bit operands as they lie in memory; Hopper widens them first."""
    spec, batch = model_spec("gpt-oss-120b"), StepBatch.decode(64.0, 2048.0)
    precision = Precision(experts="mxfp4", activations="fp8")
    for chip, unpacks in (("b200", False), ("h200", True)):
        slow, fast = (
            step_cost(spec, accelerator(chip), Layout(), precision, batch, SERVING.adjusted(unpack_flops=flops)).estimate_s
            for flops in (16.0, 0.0)
        )  # fmt: skip
        assert (slow > fast) is unpacks


def test_widening_takes_vector_units_not_bandwidth() -> None:
    """Once a weight in a small batch, once a tile of rows in a large one; as long on a chip with more bandwidth; a byte takes a quarter."""
    spec = model_spec("gpt-oss-120b")
    moe = next(layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec))
    chip = replace(accelerator("h100"), spec_memory_bytes=1e12)

    def added_s(hardware: Accelerator, experts: str, batch: StepBatch) -> float:
        """What unpacking adds to the experts' arithmetic."""
        slow, fast = (
            next(
                term.compute_s
                for term in step_cost(spec, hardware, Layout(), Precision(experts=experts), batch, constants).terms
                if term.name == "experts"
            )
            for constants in (SERVING.adjusted(unpack_flops=8.0), SERVING.adjusted(unpack_flops=0.0))
        )
        return float(slow - fast)

    few, many = StepBatch.decode(256.0, 1.0), StepBatch.prefill(64.0, 8192.0)
    weights = 3.0 * spec.d_model * moe.width * moe.num_experts * len(spec.layers)
    vector = chip.spec_flops_per_s["bf16"] / MATRIX_OVER_VECTOR
    assert added_s(chip, "mxfp4", few) == pytest.approx(weights * 8.0 / vector, rel=0.02)
    assert added_s(replace(chip, spec_memory_bytes_per_s=4.8e12), "mxfp4", few) == added_s(chip, "mxfp4", few)
    assert added_s(chip, "int8", few) == pytest.approx(0.25 * added_s(chip, "int4", few))
    tiles = 64 * 8192 * moe.top_k / moe.num_experts / SERVING.large_tile_rows
    # The last layer's experts meet the prompts' last rows alone: those that 64 rows hit, once each.
    hit_frac = distinct_experts(moe.num_experts, moe.top_k, 64.0) / moe.num_experts
    earlier = len(spec.layers) - 1
    a_layer = ((tiles + 0.5) * earlier + hit_frac) / len(spec.layers)
    assert added_s(chip, "mxfp4", many) == pytest.approx(a_layer * weights * 8.0 / vector, rel=0.02)
    known = replace(chip, spec_flops_per_s={**chip.spec_flops_per_s, "fp32": 2.0 * vector})
    assert added_s(known, "mxfp4", few) == pytest.approx(0.5 * added_s(chip, "mxfp4", few))


def amounts_of(spec: ModelSpec, batch: StepBatch) -> tuple[float, float]:
    """FLOPs of products, and bytes of weights, both without attention's own."""
    kernels = [k for k in step_amounts(spec, Layout(), Precision(), batch).kernels if k.part != "attention"]
    return sum(float(k.repeats * k.flops) for k in kernels), sum(float(k.repeats * k.weight_bytes) for k in kernels)


def chunk(new: float, logits: float) -> StepBatch:
    return StepBatch(groups=(Group(count=1.0, new=new, cached=0.0, logits=logits),))


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3", "llama-3.1-8b"])
def test_rows_that_nobody_wants_end_with_the_last_attention(name: str) -> None:
    spec = model_spec(name)
    shape, last = shape_of(spec), shape_of(spec).last
    (every, read_by_every), (one, read_by_one), (none, read_by_none) = (
        amounts_of(spec, chunk(512.0, logits)) for logits in (512.0, 1.0, 0.0)
    )
    a_row = 2.0 * (last.after_attention_params + shape.head_params)
    assert every - one == pytest.approx(511 * a_row, rel=1e-4)  # biases, which no product counts, aside
    assert one - none == pytest.approx(a_row, rel=1e-3)
    experts, k = (last.moe.num_experts, last.moe.top_k) if last.moe else (1, 1)
    idle = (distinct_experts(experts, k, 512.0) - k) * last.expert_params
    assert read_by_every - read_by_one == pytest.approx(2.0 * idle)
    behind = last.out_params + last.dense_params + last.router_params + last.shared_params + k * last.expert_params
    assert read_by_one - read_by_none == pytest.approx(2.0 * (behind + shape.head_params))


def test_a_decode_step_wants_every_row_and_a_mixed_one_those_that_sample() -> None:
    spec = model_spec("qwen3-30b-a3b")
    assert amounts_of(spec, StepBatch.decode(512.0, 0.0)) == pytest.approx(amounts_of(spec, chunk(512.0, 512.0)))
    one_by_one = sum(float(k.repeats) for k in step_amounts(spec, Layout(), Precision(), chunk(8.0, 8.0)).kernels)
    split = sum(float(k.repeats) for k in step_amounts(spec, Layout(), Precision(), chunk(8.0, 1.0)).kernels)
    assert one_by_one == split  # of layers: the last is among them once
    mixed = batch_of(StepShape([1] * 8 + [512], [100] * 8 + [0], 8))  # the chunk does not end its prompt
    assert float(mixed.logit_rows) == pytest.approx(8.0)
    assert amounts_of(spec, mixed) == pytest.approx(amounts_of(spec, chunk(520.0, 8.0)))


def test_a_norm_over_all_heads_needs_an_exchange_where_heads_are_split() -> None:
    spec = model_spec("minimax-m2.5")
    per_head = replace(
        spec, layers=tuple(replace(layer, mixer=replace(layer.mixer, qk_norm="per_head")) for layer in spec.layers)
    )  # type: ignore[arg-type]

    def collectives(shape: ModelSpec, tp: int) -> float:
        cost = step_cost(
            shape, accelerator("h200"), Layout(tp=tp), Precision.named("fp8"), StepBatch.decode(8.0, 1024.0), SERVING
        )
        return float(next(term.seconds for term in cost.terms if term.name == "collectives"))

    assert collectives(spec, 4) == pytest.approx(1.5 * collectives(per_head, 4))  # three exchanges a layer, not two
    assert collectives(spec, 1) == collectives(per_head, 1) == 0.0


def test_the_first_bytes_of_a_sum_are_dear_and_the_rest_stream() -> None:
    """Direct kernels up to `DIRECT_BYTES`, a library beyond: continuous and rising, with each one's slope on its side."""
    chip, layout = accelerator("h200"), Layout(tp=8.0)
    wire, direct = chip.need("spec_scaleup_bytes_per_s", "a sum"), 1e11

    def seconds(payload: float) -> float:
        return float(links.all_reduce(payload, 8.0, chip, layout, 0.8, direct)[1])

    share = 2.0 * 7 / 8
    small, edge, large = links.DIRECT_BYTES / 4, links.DIRECT_BYTES, 4 * links.DIRECT_BYTES
    assert seconds(small) == pytest.approx(share * small / direct)
    assert seconds(large) - seconds(edge) == pytest.approx(share * (large - edge) / (0.8 * wire))
    assert seconds(edge * (1 + 1e-9)) == pytest.approx(seconds(edge))
    assert links.all_reduce(large, 8.0, chip, layout, 0.8, direct)[0] == pytest.approx(share * large)
    wider = replace(chip, spec_scaleup_bytes_per_s=2 * wire)  # gains the library alone
    assert links.all_reduce(small, 8.0, wider, layout, 0.8, direct)[1] == seconds(small)
    streamed_s = links.all_reduce(large, 8.0, wider, layout, 0.8, direct)[1] - seconds(edge)
    assert streamed_s == pytest.approx(share * (large - edge) / (1.6 * wire))
    narrow = replace(chip, spec_scaleup_bytes_per_s=3e10)  # holds the threads up
    assert links.all_reduce(small, 8.0, narrow, layout, 0.8, direct)[1] == pytest.approx(share * small / (0.8 * 3e10))
    torus = accelerator("tpu-v6e")
    alone = links.all_reduce(small, 8.0, torus, layout, 0.8, direct)[1]
    assert alone == pytest.approx(share * small / (0.8 * torus.need("spec_scaleup_bytes_per_s", "a sum")))


@pytest.mark.parametrize(("precision", "row", "hidden"), [("bf16", 10.0, 12.0), ("fp8", 8.0, 10.0)])
def test_grouped_kernels_hand_every_intermediate_on_once(precision: str, row: float, hidden: float) -> None:
    """A row is gathered (2 bytes read, an operand written and read), leaves in 16 bits and is summed; gate and up are 16 bits each."""
    spec = model_spec("qwen3-30b-a3b")
    step = step_amounts(spec, Layout(), Precision.named(precision), StepBatch.decode(64.0, 100.0))
    experts = next(kernel for kernel in step.kernels if kernel.name == "experts")
    assert experts.other_bytes == pytest.approx(64.0 * 8 * (row * spec.d_model + hidden * 768))
