"""The root of the command line: help, versions, exit codes, one-line errors, closed pipes. In processes, as users meet it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ridgepoint import __version__
from ridgepoint.cli.main import build

ROOT = Path(__file__).parents[2]


def run(
    *arguments: str, code: int = 0, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ridgepoint.cli.main", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
        capture_output=True, text=True, input=stdin, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert done.stdout == ""
    return lines[0]


def commands() -> list[list[str]]:
    def walk(group, path: list[str]) -> list[list[str]]:
        found = [path]
        for name, command in getattr(group, "commands", {}).items():
            found += walk(command, [*path, name])
        return found

    return walk(typer.main.get_command(build()), [])


def test_the_version() -> None:
    assert run("--version").stdout.strip() == __version__


def test_help_without_arguments() -> None:
    assert "Commands" in run().stdout


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_help_ends_in_an_example(path: list[str]) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(build(), [*path, "--help"], env={"NO_COLOR": "1", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    lines = "\n".join(line.strip() for line in result.output.splitlines())  # narrow terminals wrap
    last = lines.strip().split("\n\n")[-1]
    assert last.startswith("Example:"), last


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_fits_eighty_columns_with_nothing_cut(path: list[str]) -> None:
    from typer.testing import CliRunner

    text = CliRunner().invoke(build(), [*path, "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"}).output
    assert "…" not in text and not re.search(r"\w\.\.\.$", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_the_server_s_options_stand_under_their_headings() -> None:
    text = run("serve", "--help").stdout
    assert text.index("\nOptions:") < text.index("\nEngine:") < text.index("\nLimits of one request:")
    assert text.index("\nEngine:") < text.index("--kv-dtype") < text.index("\nLimits of one request:")


def test_no_color_means_none() -> None:
    assert "\x1b[" not in run("--help", NO_COLOR="1", FORCE_COLOR="").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "--port", "xyz"], "'xyz'"),
        (["serve", "--port", "70000", "/"], "config.json"),
        (["serve", "--drain-s", "nan"], "got nan"),
        (["serve", "--keep-alive-s", "inf"], "keep_alive_s must be above 0 and finite, got inf"),
        (["complete", "a", "--max-tokens", "-1"], "-1"),
        (["complete", "a", "--temperature", "9.5"], "9.5"),
        (["serve", "/nowhere"], "/nowhere"),
        (["serve", "--dtype", "float8"], "float8"),
        (["bench"], "missing command"),
        (["complete"], "PROMPT"),
        (["complete", "a", "--url", "ftp://x"], "ftp://x"),
        (["complete", "a", "--api-key", "k"], "--url"),
        (["bench", "serve", "--url", "http://127.0.0.1:1", "--rate", "1", "--trace", "x"], "--trace"),
        (["bench", "serve", "--url", "http://127.0.0.1:1", "--trace", "/nowhere.csv"], "/nowhere.csv"),
        (["bench", "serve", "--url", "http://127.0.0.1:1", "--save", "/nowhere/a.json"], "--save /nowhere/a.json"),
        (["calibrate", "--out", "/nowhere/a.toml"], "no folder /nowhere"),
        (["plan", "gpt-oss-120b", "--hardware", "h200", "--html", "/"], "--html / is a folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    assert says.lower() in one_error(run(*arguments, code=2)).lower()


def test_an_unreachable_server_is_one_line() -> None:
    assert "127.0.0.1:1" in one_error(run("complete", "a", "--url", "http://127.0.0.1:1", code=1))


def test_models_as_json(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "strange"}))
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0" * 40)
    found = json.loads(run("models", "--json", HF_HUB_CACHE=str(tmp_path)).stdout)
    assert found["schema"] == "ridgepoint.models/1" and "qwen3_moe" in found["families"]
    (cached,) = [one for one in found["models"] if one["kind"] == "hub cache"]
    assert (cached["name"], cached["served"]) == ("org/name", False) and "'strange'" in cached["reason"]
    assert "org/name" in run("models", HF_HUB_CACHE=str(tmp_path), NO_COLOR="1", COLUMNS="200").stdout


def test_a_pipe_gets_whole_rows_and_a_screen_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = run("kv-hold", "deepseek-v3", "--hardware", "h200").stdout.splitlines()
    assert [row.split()[0] for row in rows[2:-1]] == ["memory", "host", "local", "spinning", "drop"]
    narrow = run("kv-hold", "deepseek-v3", "--hardware", "h200", "--mean-pause-s", "60", COLUMNS="80").stdout
    assert "…" not in narrow and max(map(len, narrow.splitlines()[1:-1])) <= 80


def test_a_closed_pipe_is_not_an_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from ridgepoint.cli.main import main; main(['models', '--json'])"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_a_bug_is_named_without_a_trace() -> None:
    code = (
        "import ridgepoint.engine.inventory as m; m.inventory = lambda: 1 / 0\n"
        "from ridgepoint.cli.main import main; main(['models'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "ZeroDivisionError" in one_error(done)


def test_a_full_disk_is_named_and_not_a_bug() -> None:
    code = (
        "import errno, ridgepoint.engine.inventory as m\n"
        "def full(*a, **k): raise OSError(errno.ENOSPC, 'No space left on device', 'plan.html')\n"
        "m.inventory = full\n"
        "from ridgepoint.cli.main import main; main(['models'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert (done.returncode, one_error(done)) == (2, "error: plan.html: No space left on device")


def test_ctrl_c_exits_130_quietly() -> None:
    code = (
        "import signal, ridgepoint.engine.inventory as m\n"
        "m.inventory = lambda: signal.raise_signal(signal.SIGINT)\n"
        "from ridgepoint.cli.main import main; main(['models'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
