"""`ridgepoint calibrate`: what it measures is positive, passes the catalogue's gate, and says where it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.cli.main import main
from ridgepoint.cost import cuda_machine, machine


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MATMUL_SIZES", (64, 128))
    monkeypatch.setattr(machine, "LEVEL_BYTES", (1 << 16, 1 << 20))


@pytest.mark.parametrize("with_torch", [True, False])
def test_file_is_a_hardware_file(with_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_torch:
        pytest.importorskip("torch")
    else:
        monkeypatch.setattr(machine, "_torch", lambda: None)
    measured = machine.measure_machine("mine", budget_s=0.002)
    path = tmp_path / "mine.toml"
    path.write_text(measured.to_toml())
    chip = accelerator(str(path))
    assert chip.flops_per_s("fp32") == pytest.approx(max(measured.measure_flops_per_s["fp32"].values()), rel=1e-3)
    assert chip.spec_memory_bytes_per_s == pytest.approx(measured.measure_bytes_per_s[1 << 20], rel=1e-3)
    assert chip.sources["memory_bytes_per_s"].startswith("measure_: ridgepoint calibrate")


def test_command_writes_the_file_and_refuses_bad_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["calibrate", "--seconds", "0.002", "--out", str(tmp_path / "box.toml"), "--name", "box"])
    assert left.value.code == 0 and accelerator(str(tmp_path / "box.toml")).id == "box"
    with pytest.raises(SystemExit) as left:
        main(["calibrate", "--name", "Not OK"])
    assert left.value.code == 2 and "--name must be lower-case" in capsys.readouterr().err


def test_what_a_gpu_measures_is_counted_right_and_lands_in_the_file(tmp_path: Path) -> None:
    """The functions that need no graphs, on the CPU with a clock of one millisecond a call."""
    torch = pytest.importorskip("torch")
    calls: list[str] = []

    def millisecond(run: Callable[[], object]) -> float:
        run()
        return 1e-3

    cpu = torch.device("cpu")
    flops = cuda_machine.matrix_rates(torch, cpu, (8, 16), millisecond, calls.append)
    assert flops == {kind: {8: 2 * 8**3 / 1e-3, 16: 2 * 16**3 / 1e-3} for kind in ("fp32", "bf16")}
    levels = cuda_machine.byte_rates(torch, cpu, (4096,), millisecond, calls.append)
    assert levels == {4096: 4096 / 1e-3} and len(calls) == 5
    measured = machine.MachineMeasure(
        name="gpu", device="A GPU", engine="torch 2 cuda", date="2026-01-01", measure_flops_per_s=flops,
        measure_bytes_per_s=levels, measure_step_overhead_s=3e-6, measure_overheads_s={"launch_s": 3e-6}, memory_bytes=1e9,
    )  # fmt: skip
    path = tmp_path / "gpu.toml"
    path.write_text(measured.to_toml())
    chip = accelerator(str(path))
    assert chip.kind == "gpu" and chip.measure_step_overhead_s == 3e-6 and "# launch_s: 3e-06 s" in path.read_text()
    assert measured.to_dict()["measure_overheads_s"] == {"launch_s": 3e-6}
