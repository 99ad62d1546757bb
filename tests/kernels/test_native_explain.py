"""`ridgepoint explain-kernels` names every operator and the library's state."""

from __future__ import annotations

import json

from native_support import needs_native
from typer.testing import CliRunner

from ridgepoint.cli.main import build
from ridgepoint.kernels import dispatch, native


def test_every_operator_is_explained() -> None:
    lines = dispatch.explain_ops("cpu")
    assert [line.split(":")[0] for line in lines] == dispatch.ops()
    assert {"linear", "moe_experts", "paged_attention", "norm"} <= set(dispatch.ops())


@needs_native
def test_the_command_prints_json() -> None:
    done = CliRunner().invoke(build(), ["explain-kernels", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["isa"] == native.isa()
    assert any("linear: cpu" in line and "packed weights" in line for line in report["ops"])
