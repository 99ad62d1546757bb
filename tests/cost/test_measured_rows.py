"""The benchmark's gate and the shipped constants on the measured table, where it is present."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

measured_rows = pytest.importorskip("measured_rows")
figures = pytest.importorskip("figures")
held_out = pytest.importorskip("held_out")
recipes = pytest.importorskip("recipes")
pytestmark = pytest.mark.skipif(not measured_rows.available(), reason="no shared measured tables here")


@pytest.fixture(scope="module")
def rows() -> list:  # type: ignore[type-arg]
    return measured_rows.serving_rows()[0]


def test_gate_refuses_about_a_tenth_by_rule(rows: list) -> None:  # type: ignore[type-arg]
    kept, refused = measured_rows.gated(rows)
    assert 0.05 * len(rows) < sum(refused.values()) < 0.20 * len(rows)
    assert {"a degree is zero", "more chips than the scale-up domain has", "below the physical floor"} <= set(refused)
    assert not any(measured_rows.below_floor(row) for row in kept)


def test_gate_refuses_a_time_no_chip_could_make(rows: list) -> None:  # type: ignore[type-arg]
    from dataclasses import replace

    kept, _ = measured_rows.gated(rows[:40])
    assert measured_rows.below_floor(replace(kept[0], measure_tpot_s=kept[0].measure_tpot_s / 100))


def test_precision_labels_mean_what_engines_run(rows: list) -> None:  # type: ignore[type-arg]
    from ridgepoint.catalog.hardware import accelerator

    h100, b200 = accelerator("h100"), accelerator("b200")
    assert measured_rows.precision_of("gpt-oss-120b", "fp4", "vllm", h100).experts == "mxfp4"
    assert measured_rows.precision_of("gpt-oss-120b", "fp4", "vllm", h100).activations == "bf16"
    assert measured_rows.precision_of("gpt-oss-120b", "fp4", "vllm", b200).activations == "fp8"
    with pytest.raises(ValueError, match="unknown precision label 'fp3'"):
        measured_rows.precision_of("qwen3-32b", "fp3", "vllm", h100)


def test_recipes_say_how_rows_were_run_and_where_nobody_can_tell() -> None:
    plain = recipes.Run(
        "source_file=2026-04-06.csv", "deepseek-v3", "b200-sxm", "trtllm", "1.2.0rc6.post2", "fp8", 8, 1, 1024, 64
    )
    assert recipes.recipe(plain).draft_tokens == 0 and recipes.recipe(plain).kv == "fp8"
    drafting = plain._replace(version="1.2.0rc6.post3")
    assert (
        recipes.recipe(drafting).draft_tokens == 3
        and recipes.recipe(drafting._replace(dp_attention=8)).draft_tokens == 1
    )
    shared = plain._replace(engine="sglang", version="0.5.9")
    assert (
        recipes.recipe(shared).draft_tokens is None
        and recipes.recipe(shared._replace(concurrency=128)).draft_tokens == 2
    )
    elsewhere = recipes.recipe(plain._replace(source="source_file=/data/h100_sxm"))
    assert elsewhere == recipes.AS_STATED and elsewhere.equal_lengths and not recipes.recipe(plain).equal_lengths


def test_rows_that_may_draft_or_not_are_refused(rows: list) -> None:  # type: ignore[type-arg]
    unknown = [row for row in rows if row.recipe.draft_tokens is None]
    assert unknown and all(row.refused for row in unknown)


def test_shipped_constants_describe_the_table(rows: list) -> None:  # type: ignore[type-arg]
    """In sample, so better than the held-out figures the benchmark reports; a regression guard, not a claim."""
    from ridgepoint.cost.calibration import calibration

    kept, _ = measured_rows.gated(rows)
    pooled = held_out.predict(kept, lambda deployment: calibration(deployment.labels[0].replace("engine:", "serving-")))
    error = figures.error_summary(pooled.log_error())
    assert error["median_frac"] < 0.11 and error["p90_frac"] < 0.38


def test_about_a_tenth_of_measured_times_lie_below_the_tuned_constants(rows: list) -> None:  # type: ignore[type-arg]
    from ridgepoint.cost.calibration import calibration

    kept, _ = measured_rows.gated(rows)
    tuned = held_out.predict(kept, lambda _: calibration("tuned")).log_error()
    assert 0.05 < np.mean(tuned > 0) < 0.20


def test_no_measured_plain_step_is_as_fast_as_submissions_that_must_have_drafted(rows: list) -> None:  # type: ignore[type-arg]
    """DeepSeek in fp8 on B200: a published front reaches 6.1 and 8.3 ms a token; rows that drafted do, rows that did not stay above 10."""
    kept, _ = measured_rows.gated(rows)
    on_b200 = [r for r in kept if (r.model, r.hardware.id, r.precision_name) == ("deepseek-v3", "b200-sxm", "fp8")]
    plain = [row.measure_tpot_s for row in on_b200 if row.recipe.draft_tokens == 0]
    drafting = [row.measure_tpot_s for row in on_b200 if row.recipe.draft_tokens]
    assert len(plain) >= 10 and len(drafting) >= 10
    assert min(drafting) < 0.0061 < 0.010 < min(plain)
