"""`ridgepoint quantize`, what a checkpoint would run on, and engines that keep quiet: in processes, as users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_command_line import one_error, run

from ridgepoint.engine.source import embedded_folder

pytestmark = pytest.mark.skipif(embedded_folder() is None, reason="no embedded model")


def test_a_checkpoint_is_written_explained_and_served(tmp_path: Path) -> None:
    out = tmp_path / "int4"
    report = json.loads(run("quantize", "stdlib-moe", str(out), "--format", "int4-g32", "--json").stdout)
    assert report["schema"] == "ridgepoint.quantize/1" and report["target_bytes"] < 0.7 * report["source_bytes"]
    assert "exists and is not overwritten" in one_error(
        run("quantize", "stdlib-moe", str(out), "--format", "int8", code=2)
    )
    explained = json.loads(run("explain-kernels", str(out), "--json").stdout)
    by_role = {row["role"]: row for row in explained["weights"]}
    assert by_role["experts.w_gate_up_E2FD"]["how"] == "int4-32 as stored"
    assert by_role["head"]["packed"] == "int8" and by_role["ffn.router"]["packed"] == "f32"
    done = run("complete", "def read_json(path):", "--model", str(out), "--max-tokens", "6")
    assert done.stdout.strip() and done.stderr == ""


def test_an_engine_speaks_when_asked_to() -> None:
    done = run("complete", "import os", "--max-tokens", "2", "--weight-format", "int8", "--verbose")
    assert "weights packed as int8 as stored" in done.stderr and "weight cache off" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quantize", "stdlib-moe", "{tmp}/x", "--format", "int3"], "int3"),
        (["quantize", "/nowhere", "{tmp}/x", "--format", "int8"], "/nowhere"),
        (["quantize", "stdlib-moe", "{tmp}/x", "--format", "int8", "--exclude", "nothing"], "names no matrix"),
        (["quantize", "stdlib-moe", "{tmp}/x", "--format", "int8", "--calibration-text", "{tmp}/y"], "activation-aware"),
        (["quantize", "stdlib-moe", "{tmp}/x", "--format", "int8", "--method", "activation-aware", "--calibration-text",
          "{tmp}/y"], "cannot be read"),
        (["complete", "x", "--url", "http://127.0.0.1:1", "--weight-format", "int8"], "for an engine of your own"),
        (["explain-kernels", "--weight-format", "int8"], "none was named"),
        (["explain-kernels", "stdlib-moe", "--weight-format", "int3"], "int3"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments), code=2)
    assert says in one_error(done) and not list(tmp_path.iterdir())
