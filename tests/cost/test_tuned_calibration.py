"""The `tuned` constants against published decode steps of engines their teams tuned: no such row was in the fit.

DeepSeek-V3 decoding with wide expert parallelism (32 to 144 chips, 128 to 1,408 sequences a chip), and DeepSeek's own public day.
The law adds the time on wires to the kernels'; these engines hide part of it behind a second half-batch, so the estimate may be
high, by at most what it says links take.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import Layout, Precision, StepBatch, StepCost, step_cost
from ridgepoint.cost.calibration import calibration

DATA = Path(os.environ.get("RIDGEPOINT_DATA") or Path(__file__).parents[3] / "shared" / "data")
PUBLISHED = DATA / "published_numbers.csv"
CHIPS = {"GB200": "gb200", "H800": "h800", "H100": "h100", "H200": "h200"}


def decode_rows() -> list[dict[str, str]]:
    if not PUBLISHED.exists():
        return []
    with PUBLISHED.open(newline="") as file:
        found = list(csv.DictReader(file))
    return [
        row for row in found
        if row["model"].startswith("DeepSeek-V3") and row["phase"] == "decode" and row["spec_decode"] in ("none", "not stated") and row["tpot_ms"]
        and re.search(r"EP(\d+)", row["parallelism"]) and any(chip in row["hardware"] for chip in CHIPS)
    ]  # fmt: skip


def step(row: dict[str, str], constants: str) -> StepCost:
    chip = next(name for label, name in CHIPS.items() if label in row["hardware"])
    ranks = float(re.search(r"EP(\d+)", row["parallelism"])[1])  # type: ignore[index]
    per_chip = float(row["batch_or_concurrency"] or float(row["tok_s_per_gpu"]) * float(row["tpot_ms"]) / 1e3)
    context = float(row["input_len"]) + 0.5 * float(row["output_len"] or 0.0)
    precision = Precision.named("fp8")
    if "NVFP4 MoE" in row["precision"]:
        precision = replace(Precision.named("nvfp4_experts"), activations="nvfp4")
    return step_cost(
        model_spec("deepseek-v3"), accelerator(chip), Layout(dp_attention=ranks, ep=ranks), precision,
        StepBatch.decode(per_chip * ranks, context), calibration(constants),
    )  # fmt: skip


def test_wide_expert_parallel_decode_steps() -> None:
    rows = decode_rows()
    if not rows:
        pytest.skip("no shared published numbers here")
    assert len(rows) >= 6
    error: dict[str, list[float]] = {"serving": [], "tuned": []}
    for row in rows:
        measured = float(row["tpot_ms"]) / 1e3
        for name, values in error.items():
            cost = step(row, name)
            values.append(float(np.log(cost.estimate_s / measured)))
            assert cost.floor_s < measured
        tuned = step(row, "tuned")
        assert 0.9 * measured < tuned.estimate_s < measured + tuned.roof_s["links"], row["id"]
    assert np.median(np.abs(error["tuned"])) < 0.15 < np.median(np.abs(error["serving"]))
    assert np.max(np.abs(error["tuned"])) < 0.40


def test_tuned_is_nowhere_slower_than_the_middle() -> None:
    spec, chip = model_spec("gpt-oss-120b"), accelerator("h200")
    batch = StepBatch.decode(2.0 ** np.arange(0, 9, dtype=float), 2000.0)
    middle, tuned = (
        step_cost(spec, chip, Layout(tp=4.0), Precision.named("mxfp4"), batch, calibration(name)).estimate_s
        for name in ("serving", "tuned")
    )
    assert (tuned < 0.9 * middle).all()
