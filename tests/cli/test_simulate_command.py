"""`ridgepoint simulate` from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ridgepoint.cli.main import build
from ridgepoint.errors import ConfigError

SRC = Path(__file__).parents[2] / "src"


def main_of(*arguments: str) -> None:
    """The command in this process, its errors unprinted."""
    with get_command(build()).make_context("ridgepoint", list(arguments)) as context:
        context.command.invoke(context)


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
    assert (
        wrong.returncode == 2
        and len(wrong.stderr.strip().splitlines()) == 1
        and "rate must be positive" in wrong.stderr
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rate", "nan"),
        ("--rate", "inf"),
        ("--requests", "0"),
        ("--prompt-tokens", "0"),
        ("--output-tokens", "-1"),
        ("--spread", "3"),
        ("--max-step-tokens", "0"),
        ("--step-budget-s", "0"),
        ("--max-waiting", "-1"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name_and_value(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option[2:].replace('-', '_')} .*{value}"):
        main_of("simulate", "gpt-oss-120b", "--hardware", "h200", "--requests", "20", option, value)


def test_why_arrivals_were_turned_away_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    many = ("simulate", "gpt-oss-120b", "--hardware", "h200", "--requests", "3", "--prompt-tokens", "1000000")
    main_of(*many)
    shown = capsys.readouterr().out
    assert "0 served, 3 refused" in shown and "may have 131072" in shown and "time to first token" not in shown
    main_of(*many, "--json")
    assert sum(json.loads(capsys.readouterr().out)["refusals"].values()) == 3
