"""Which path runs: by device, by force, and never silently another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import dispatch
from ridgepoint.kernels.dispatch import explain, explain_ops, forced, implementation, substituted, triton_installed

HERE = torch.empty(0)


def test_the_device_decides() -> None:
    assert implementation("norm", HERE).__name__ == "ridgepoint.kernels.norm.cpu"
    assert implementation("norm", torch.empty(0, device="meta")).__name__ == "ridgepoint.kernels.norm.cpu"
    assert explain("norm", "cpu").startswith("norm: cpu (")


def test_a_forced_path_ends_with_its_block() -> None:
    with forced("reference"):
        assert implementation("norm", HERE).__name__ == "ridgepoint.kernels.norm.reference"
        assert explain("norm", "cpu") == "norm: reference (forced)"
    assert implementation("norm", HERE).__name__ == "ridgepoint.kernels.norm.cpu"


def test_a_substitute_serves_its_block_and_thread_alone() -> None:
    mine = SimpleNamespace()
    with substituted({"norm": mine}), ThreadPoolExecutor(1) as pool:
        assert implementation("norm", HERE) is mine
        assert implementation("glu", HERE).__name__ == "ridgepoint.kernels.glu.cpu"
        assert pool.submit(implementation, "norm", HERE).result().__name__ == "ridgepoint.kernels.norm.cpu"
    assert implementation("norm", HERE).__name__ == "ridgepoint.kernels.norm.cpu"


@pytest.mark.parametrize(
    ("path", "message"), [("fast", "'fast' is unknown; allowed: reference"), ("triton", "no path 'triton'")]
)
def test_an_absent_path_is_an_error(path: str, message: str) -> None:
    with forced(path), pytest.raises(ConfigError, match=message):
        implementation("clip", HERE)


def test_what_runs_on_a_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {line.split(":")[0]: line for line in explain_ops("cuda")}
    assert "cpu (" in lines["clip"] and "no Triton kernel" in lines["clip"]
    if triton_installed():
        assert lines["moe_experts"].startswith("moe_experts: triton (") and "bf16, else torch" in lines["moe_experts"]
        assert "torch's BLAS for dense" in lines["linear"]
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    assert explain("moe_experts", "cuda").startswith("moe_experts: cpu (")
    assert "Triton is not installed" in next(line for line in explain_ops("cuda") if line.startswith("moe_experts"))
