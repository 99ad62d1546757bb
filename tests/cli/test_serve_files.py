"""`serve --config` and `serve --plan`: files become defaults, what is typed wins, and what cannot be served is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ridgepoint.cli import serve as serve_module
from ridgepoint.cli.main import main
from ridgepoint.engine.options import EngineOptions
from ridgepoint.server.config import ServerConfig


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineOptions, ServerConfig]]:
    """What `serve` would run, instead of running it."""
    calls: list[tuple[EngineOptions, ServerConfig]] = []
    monkeypatch.setattr(serve_module, "_run", lambda source, options, config, template: calls.append((options, config)))
    return calls


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["serve", *arguments])
    return int(left.value.code or 0)


def plan(**changes: Any) -> dict[str, Any]:
    serve = {"tp": 1, "dp_attention": 1, "ep": 1, "pp": 1, "max_sequences": 24, "chunk_tokens": 512, "step_interval_s": 0.05, "draft_tokens": 0}  # fmt: skip
    whole = {
        "schema": "ridgepoint.plan/1", "feasible": True, "failures": [],
        "choice": {"mode": "together", "serve": serve, "decode": {"hardware": "h200-sxm"}, "prefill": None},
    }  # fmt: skip
    for key, value in changes.items():
        target = serve if key in serve else whole["choice"] if key in ("mode", "prefill") else whole
        target[key] = value  # type: ignore[index]
    return whole


def test_config_file_sets_options_and_typed_ones_win(tmp_path: Path, started: list) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max_num_seqs = 8\nport = 1234\nprefix_cache = false\napi_key = ["abcdefgh1"]\n')
    assert run("--config", str(file), "--port", "4321") == 0
    options, config = started[0]
    assert (options.max_num_seqs, options.prefix_cache, config.port) == (8, False, 4321)
    assert config.api_keys == ("abcdefgh1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_seqs = 8\n", "unknown option 'max_seqs'"),
        ("config = 'x.toml'\n", "unknown option 'config'"),
        ("port = 'many'\n", "should be a valid integer"),
        ("port = \n", "cannot be read"),
    ],
)
def test_bad_config_files_are_refused(
    text: str, message: str, tmp_path: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    assert run("--config", str(file)) == 2 and message in capsys.readouterr().err
    assert not started


def test_plan_sets_batch_chunk_interval_and_hardware(tmp_path: Path, started: list) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan()))
    assert run("--plan", str(file)) == 0
    options, _ = started[0]
    assert (options.max_num_seqs, options.max_step_tokens, options.step_budget_s, options.hardware) == (24, 512, 0.05, "h200-sxm")  # fmt: skip
    assert run("--plan", str(file), "--step-budget-s", "0.2") == 0
    assert started[1][0].step_budget_s == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 8}, "several devices (tp 8)"),
        ({"mode": "disaggregated", "prefill": {"hardware": "a100"}}, "prefills on a100 apart"),
        ({"draft_tokens": 3}, "drafts 3 tokens"),
        ({"feasible": False, "failures": [{"metric": "tpot_s"}]}, "meets no goal (missed: tpot_s)"),
        ({"schema": "other"}, "is not a plan"),
    ],
)
def test_plans_that_this_server_cannot_be_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan(**changes)))
    assert run("--plan", str(file)) == 2 and message in capsys.readouterr().err
    assert not started


def test_one_option_from_both_files_is_refused(
    tmp_path: Path, started: list, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    (tmp_path / "serve.toml").write_text("max_num_seqs = 3\n")
    assert run("--plan", str(tmp_path / "plan.json"), "--config", str(tmp_path / "serve.toml")) == 2
    assert "max_num_seqs given by --config and by --plan" in capsys.readouterr().err
