"""Facts and their traps: dense and one-way figures, capacities, unknowns, sources, custom files."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from ridgepoint.catalog.hardware import accelerator, accelerator_from_table, accelerators
from ridgepoint.errors import CatalogError

DATA = Path(os.environ.get("RIDGEPOINT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def test_every_value_has_a_source() -> None:
    for chip in accelerators().values():
        numbers = [
            name
            for name in ("spec_memory_bytes", "spec_memory_bytes_per_s", "spec_tdp_w")
            if getattr(chip, name) is not None
        ]
        assert numbers, chip.id
        for name in numbers:
            assert chip.sources[name.removeprefix("spec_")], (chip.id, name)


def test_dense_and_one_way() -> None:
    h100 = accelerator("h100")
    assert h100.flops_per_s("bf16") == pytest.approx(989.4e12)  # the sparse figure is 1979
    assert h100.flops_per_s("fp8") == pytest.approx(1978.9e12)  # and 3958
    assert h100.spec_scaleup_bytes_per_s == 450e9  # 900 GB/s is both ways
    assert accelerator("l4").flops_per_s("bf16") == 121e12
    assert accelerator("gb200").scaleup_domain_chips == 72


@pytest.mark.skipif(not (DATA / "hardware.csv").is_file(), reason="no shared tables here")
def test_catalogue_agrees_with_the_gathered_table() -> None:
    with (DATA / "hardware.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(accelerators())
    for row in rows:
        chip = accelerator(row["id"])
        for column, name, scale in (
            ("mem_gb", "spec_memory_bytes", 1e9), ("mem_bw_tb_s", "spec_memory_bytes_per_s", 1e12), ("tdp_w", "spec_tdp_w", 1.0),
            ("scaleup_gb_s_oneway_per_chip", "spec_scaleup_bytes_per_s", 1e9),
            ("scaleout_gb_s_oneway_per_chip", "spec_scaleout_bytes_per_s", 1e9), ("price_usd_hr_low", "usd_per_hour_low", 1.0),
        ):  # fmt: skip
            value = getattr(chip, name)
            assert (value is None) == (row[column] == ""), (row["id"], column)
            assert value is None or value == pytest.approx(float(row[column]) * scale, rel=1e-6), (row["id"], column)
        assert chip.spec_flops_per_s.get("fp8") == (
            pytest.approx(float(row["fp8_dense_tflops"]) * 1e12) if row["fp8_dense_tflops"] else None
        )


def test_unknown_stays_unknown_and_says_so() -> None:
    rubin = accelerator("rubin-nvl72")
    assert rubin.spec_scaleout_bytes_per_s is None
    with pytest.raises(CatalogError, match="rubin-nvl72: spec_scaleout_bytes_per_s is unknown, and a test needs it"):
        rubin.need("spec_scaleout_bytes_per_s", "a test")
    with pytest.raises(CatalogError, match="dense bf16 FLOP/s is unknown"):
        accelerator("wse3").flops_per_s("bf16")


def test_a_type_the_chip_lacks_runs_in_the_next_wider() -> None:
    assert accelerator("a100").compute_type("fp8") == "bf16"
    assert accelerator("v100").compute_type("bf16") == "fp16"
    assert accelerator("h100").compute_type("fp4") == "fp8"
    assert accelerator("b200").compute_type("fp4") == "fp4"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"memory_bytez": 1e9}, "unknown hardware key 'memory_bytez'"),
        ({"memory_bytes_per_s": 0.0}, "memory_bytes_per_s must be positive"),
        ({"tdp_w": -5}, "tdp_w must be positive"),
        ({"memory_bytes": "80 GB"}, "must be a number"),
        (
            {"flops_per_s_bf16": 1e14, "achieved_flops_per_s_bf16": 2e14},
            "measured bf16 2e\\+14 FLOP/s is above the peak",
        ),
        (
            {"memory_bytes_per_s": 1e12, "measure_memory_bytes_per_s": 2e12},
            "measured memory bandwidth 2e\\+12 B/s is above the peak",
        ),
        ({"usd_per_hour_low": 3.0, "usd_per_hour_high": 2.0}, "usd_per_hour_low 3 is above"),
    ],
)
def test_bad_facts_are_refused_by_name(table: dict[str, object], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        accelerator_from_table("mine", table)


def test_custom_hardware_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\nmemory_bytes = 1e9\nmemory_bytes_per_s = [1e11, "bench"]\nflops_per_s_bf16 = 1e13\n')
    chip = accelerator(str(path))
    assert (chip.spec_memory_bytes, chip.sources["memory_bytes_per_s"]) == (1e9, "bench")
    with pytest.raises(CatalogError, match="unknown accelerator 'h1000'"):
        accelerator("h1000")
