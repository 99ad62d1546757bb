"""The planner's throughput at a stated speed against published best submissions that no constant was fitted to.

DeepSeek-R1 in fp8, 8,192 tokens in and 1,024 out, on B200 and GB200. A submission is one team's best on a public harness with
a few nodes, the plan any layout on any number of chips: within a factor of two is agreement. Faster than 12 ms a token the fixed
overheads of an average engine, which the calibration carries, leave the plan far slower than a tuned submission: not compared.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.search import Question, plan
from ridgepoint.plan.workload import Goal, Workload

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published_numbers.csv"
CHIPS = {"B200": "b200", "GB200 NVL72": "gb200"}
FACTOR = 2.0


def rows() -> list[dict[str, str]]:
    if not PUBLISHED.exists():
        return []
    with PUBLISHED.open() as file:
        found = list(csv.DictReader(file))
    return [
        row for row in found
        if row["system"] == "InferenceX best submission" and row["model"] == "DeepSeek-R1" and row["hardware"] in CHIPS and row["input_len"] == "8192"
        and row["precision"] == "fp8" and float(row["tpot_ms"] or 0) >= 12
    ]  # fmt: skip


def test_throughput_per_chip_is_within_a_factor_of_two() -> None:
    published = rows()
    if not published:
        pytest.skip("shared data absent")
    assert len(published) >= 4
    ratios = {}
    for row in published:
        work = Workload(input_tokens=8192, output_tokens=1024, users=2000)
        goal = Goal(tpot_s=float(row["tpot_ms"]) / 1e3, confidence=0.5)
        pools = (parse_pool(CHIPS[row["hardware"]], "fp8"),)
        chosen = plan(Question(model=named_model("deepseek-r1"), pools=pools, workload=work, goal=goal)).choice.chosen
        mine = chosen["requests_per_s"] * (8192 + 1024) / chosen["chips"]
        ratios[row["id"]] = mine / float(row["tok_s_per_gpu"])
    assert all(1 / FACTOR < ratio < FACTOR for ratio in ratios.values()), ratios
