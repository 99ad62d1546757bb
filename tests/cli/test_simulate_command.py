"""`ridgepoint simulate` from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ridgepoint.cli.main", "simulate", *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SRC), "NO_COLOR": "1"}, timeout=60,
    )  # fmt: skip


def test_more_traffic_waits_longer_and_a_shared_prompt_is_found() -> None:
    usual = (
        "gpt-oss-120b",
        "--hardware",
        "h200",
        "--requests",
        "60",
        "--prompt-tokens",
        "800",
        "--output-tokens",
        "40",
        "--json",
    )
    calm, busy = (json.loads(simulate(*usual, "--rate", rate).stdout) for rate in ("1", "200"))
    assert calm["schema"] == "ridgepoint.simulate/1" and calm["served"] == busy["served"] == 60
    assert busy["simulate_ttft_s"]["50.0"] > calm["simulate_ttft_s"]["50.0"]
    assert busy["simulate_output_tokens_per_s"] > 5 * calm["simulate_output_tokens_per_s"]
    shared = json.loads(simulate(*usual, "--rate", "1", "--shared-frac", "0.5").stdout)
    assert calm["prefix_hit_frac"] == 0 and 0.3 < shared["prefix_hit_frac"] < 0.7


def test_people_get_a_table_and_mistakes_get_a_line() -> None:
    shown = simulate("gpt-oss-120b", "--hardware", "h200", "--requests", "20", "--output-tokens", "10")
    assert shown.returncode == 0 and "time to first token" in shown.stdout and "20 served, 0 refused" in shown.stdout
    wrong = simulate("gpt-oss-120b", "--hardware", "h200", "--rate", "0")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1 and "positive rate" in wrong.stderr
