"""`ridgepoint calibrate`: what it measures is positive, passes the catalogue's gate, and says where it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    flops = {
        kind: cuda_machine.matrix_rates(torch, cpu, (8, 16), millisecond, calls.append, kind)
        for kind in cuda_machine.matrix_kinds(torch, cpu)
    }
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


def one_pass(rate: float, overhead_s: float = 1e-6) -> dict[str, Any]:
    return {
        "device": "A CPU", "engine": "test", "measure_flops_per_s": {"fp32": {64: rate, 128: 2 * rate}}, "measure_bytes_per_s": {1024: rate / 2, 1 << 20: rate},
        "measure_step_overhead_s": overhead_s, "memory_bytes": 1e9,
    }  # fmt: skip


def test_figures_carry_the_spread_of_their_passes(tmp_path: Path) -> None:
    found = machine.best_of([one_pass(1.00e11), one_pass(1.04e11, 0.9e-6), one_pass(1.02e11)])
    assert found["measure_flops_per_s"]["fp32"] == {64: 1.04e11, 128: 2.08e11}
    assert found["measure_bytes_per_s"][1 << 20] == 1.04e11 and found["measure_step_overhead_s"] == 0.9e-6
    assert found["spread_frac"]["fp32 128"] == pytest.approx(0.04)
    measured = machine.MachineMeasure(name="mine", date="2026-01-01", load=0.1, **found)
    assert measured.unsteady is not None and "step overhead by 11%" in measured.unsteady  # 1.0 against 0.9 us
    quiet = machine.MachineMeasure(name="mine", **machine.best_of([one_pass(1.00e11), one_pass(1.04e11)]))
    assert quiet.unsteady is None and "unsteady" not in quiet.to_toml()
    path = tmp_path / "mine.toml"
    path.write_text(quiet.to_toml())
    assert accelerator(str(path)).sources["memory_bytes_per_s"].endswith("passes within 4%")


def test_a_busy_machine_is_named_on_stderr_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passes of half the rate between two of the whole: the figure is the best, and nobody takes it for quiet."""
    rates = iter((1.0e11, 0.5e11, 0.9e11))
    monkeypatch.setattr(machine, "_torch", lambda: None)
    monkeypatch.setattr(machine, "_with_numpy", lambda budget_s, progress: one_pass(next(rates)))
    monkeypatch.setattr(machine, "_load", lambda: 5.25)
    path = tmp_path / "box.toml"
    with pytest.raises(SystemExit) as left:
        main(["calibrate", "--out", str(path), "--name", "box"])
    assert left.value.code == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert (
        len(said) == 1
        and "4 of 5 figures differ by more than 10% between passes" in said[0]
        and "fp32 64 by a factor of 2; the load was 5.2" in said[0]
    )
    assert "# unsteady: 4 of 5 figures" in path.read_text() and "passes within a factor of 2" in path.read_text()
    assert accelerator(str(path)).flops_per_s("fp32") == 2.0e11


def test_bf16_counts_as_no_slower_than_float32() -> None:
    """Below that the calibration of an engine whose kernels widen it refuses their steps as beyond the machine."""
    assert machine.widened({256: 1.0, 1024: 9.0}, {256: 5.0, 1024: 5.0}) == {256: 5.0, 1024: 9.0}
    pytest.importorskip("torch")
    rates = machine.measure_machine(budget_s=0.0).measure_flops_per_s
    if "bf16" in rates and "fp32" in rates:
        assert all(rates["bf16"][size] >= rate for size, rate in rates["fp32"].items())
