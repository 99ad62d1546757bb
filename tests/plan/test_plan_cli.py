"""The planner's commands: JSON that parses, one line for every mistake, examples that are still what the command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ridgepoint.cli.main import main
from ridgepoint.cli.plan_examples import EXAMPLES, example_page

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_goal_that_nothing_keeps_exits_3_with_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("plan", "gpt-oss-120b", "--hardware", "h200:1", "--users", "64", "--tpot-ms", "1")
    code, out, _ = run(capsys, *asked)
    assert code == 3 and "no deployment keeps the goal" in out and "time per token <= 1 ms" in out
    code, out, _ = run(capsys, *asked, "--json")
    assert code == 3 and json.loads(out)["feasible"] is False
    code, out, _ = run(capsys, "plan", "gpt-oss-120b", "--hardware", "h200:1", "--requests-per-s", "1000")
    assert code == 3 and re.search(r"chips: no deployment needs fewer than \d+ times as many as there are", out)


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "plan",
            "gpt-oss-120b",
            "--hardware",
            "h200:2",
            "--precision",
            "mxfp4",
            "--users",
            "64",
            "--tpot-ms",
            "50",
            "--json",
        ),
        ("plan", "gpt-oss-120b", "--hardware", "h200:1", "--users", "9999", "--json", "--explain"),
        ("numbers", "--json"),
        ("kv-hold", "deepseek-v3", "--hardware", "h200", "--mean-pause-s", "30", "--json"),
        (
            "prices",
            "--input-usd",
            "2",
            "--output-usd",
            "12",
            "--long-threshold",
            "200000",
            "--long-output-usd",
            "18",
            "--json",
        ),
    ],
)
def test_json_is_data_on_stdout_alone(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *arguments)
    assert code == (3 if "9999" in arguments else 0)  # more users than one chip serves: an answer, but no plan
    assert json.loads(out)["schema"].startswith("ridgepoint.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan",), "which model"),
        (("plan", "gpt-oss-120b"), "at least one kind of hardware"),
        (("plan", "nothing", "--hardware", "h200"), "unknown model"),
        (("plan", "gpt-oss-120b", "--hardware", "h2000"), "unknown accelerator"),
        (("plan", "gpt-oss-120b", "--hardware", "h200:-1"), "count must be at least 1"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--tpot-ms", "-3"), "must be positive"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--prefix-hit", "50"), "not a percentage"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--users", "1", "--requests-per-s", "1"), "contradict"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--rent", "h100=2"), "not among the hardware"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--precision", "fp3"), "unknown precision"),
        (("plan", "deepseek-v3", "--hardware", "h200:2"), "at least 5 chips"),
        (("plan", "gpt-oss-120b", "--hardware", "h200", "--minimise", "joy"), "unknown objective"),
        (("plan", "--example", "nothing"), "unknown example"),
        (("plan", "gpt-oss-120b", "--hardware", "missing.toml"), "no hardware file"),
        (("kv-hold", "deepseek-v3", "--hardware", "h200", "--reuse-prob", "2"), "between 0 and 1"),
        (("prices", "nobody"), "unknown vendor"),
        (("prices", "--input-usd", "1"), "both --input-usd and --output-usd"),
        (("prices", "--input-usd", "1", "--output-usd", "2", "--assume", "x=1"), "unknown assumption"),
        (("numbers", "--section", "nothing"), "no section"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    if "nobody" in arguments:
        pytest.importorskip("genai_prices")
    code, out, err = run(capsys, *arguments)
    assert code != 0 and out == ""
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert "internal" not in err


def test_custom_hardware_with_no_bandwidth_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[mine]\nmemory_bytes = 8e10\nmemory_bytes_per_s = 0\nflops_per_s_bf16 = 1e15\n")
    code, _, err = run(capsys, "plan", "gpt-oss-120b", "--hardware", str(file))
    assert code != 0 and "memory_bytes_per_s must be positive" in err


def test_custom_hardware_is_planned_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "[mine]\nmemory_bytes = 2e11\nmemory_bytes_per_s = 4e12\nflops_per_s_bf16 = 1e15\nusd_per_hour_low = 1\nusd_per_hour_high = 2\n"
    )
    code, out, _ = run(
        capsys, "plan", "gpt-oss-120b", "--hardware", f"{file}:1", "--users", "16", "--rent", "mine=1.5", "--json"
    )
    found = json.loads(out)
    assert (
        code == 0
        and found["choice"]["decode"]["hardware"] == "mine"
        and found["choice"]["figures"]["usd_per_hour"]["high"] == 1.5
    )
    assert found["choice"]["figures"]["watts"]["middle"] is None  # unknown stays unknown


def test_every_help_ends_in_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for noun in ("plan", "prices", "kv-hold", "numbers"):
        code, out, _ = run(capsys, noun, "--help")
        assert code == 0
        assert f"Example: ridgepoint {noun}" in " ".join(out.split())


def test_html_goes_where_it_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    file = tmp_path / "plan.html"
    code, _, err = run(capsys, "plan", "gpt-oss-120b", "--hardware", "h200:1", "--users", "8", "--html", str(file))
    assert code == 0 and str(file) in err.replace("\n", "")
    assert file.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_examples_are_what_the_command_prints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "plans" / f"{name}.md"
    assert page.read_text() == example_page(name), "run `ridgepoint plan --example all --write docs/plans`"


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("command", ["kv-hold", "numbers"])
def test_tables_are_whole_at_every_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    """No line is cut, no word broken, no figure missing beside what goes through a pipe, where a row is a line."""
    more = (
        ("deepseek-v3", "--hardware", "h200", "--mean-pause-s", "60")
        if command == "kv-hold"
        else ("--hardware", "h200")
    )

    def table() -> list[str]:
        code, out, _ = run(capsys, command, *more)
        assert code == 0
        return [line for line in out.splitlines() if "KV; it comes" not in line and not line.startswith("Cheapest by")]

    monkeypatch.delenv("COLUMNS", raising=False)
    unfolded = table()
    assert any(line.startswith("host DDR5") for line in unfolded)
    monkeypatch.setenv("COLUMNS", str(width))
    folded = table()
    assert max(len(line) for line in folded) <= width
    words = set(" ".join(folded).split())
    assert {word for line in unfolded for word in line.split()} - words <= {
        "way",
        "(estimate_)",
        "source",
        "or",
        "formula",
    }
