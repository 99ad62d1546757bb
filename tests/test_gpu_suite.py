"""The GPU suite without a GPU: a smoke run, what it makes of figures, and a section that fails beside one that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_report
import gpu_suite

SCRIPT = Path(gpu_suite.__file__)


def run_suite(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *arguments],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, json.loads((out / "suite.json").read_text()), done.stdout + done.stderr


def test_a_smoke_run_passes_through_every_section(tmp_path: Path) -> None:
    code, report, told = run_suite(tmp_path, "--smoke")
    assert code == 0, told
    assert [section["section"] for section in report["sections"]] == [section.name for section in gpu_suite.SECTIONS]
    assert all(section["error"] is None for section in report["sections"])
    found = {(row["section"], row["name"]) for row in report["rows"]}
    assert {("step", "syncs"), ("calibration", "median_error_frac"), ("experts", "decode_1_us")} <= found
    assert report["commit"] and report["machine"]["torch"] == torch.__version__
    assert (tmp_path / "hardware.toml").read_text().count("flops_per_s_bf16") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="sections succeed where there is a GPU")
def test_a_section_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    code, report, told = run_suite(tmp_path, "--sections", "norm", "--minutes", "0.5")
    assert code == 1
    errors = {section["section"]: section["error"] for section in report["sections"]}
    assert set(errors) == {"rates", "norm"}
    assert errors["rates"] and errors["norm"] and "FAILED norm" in told
    assert "rates.memory_bytes_per_s" in told and "absent" in told


def test_goals_are_judged_from_their_side() -> None:
    entry = {"expected": 5.0, "goal": 4.0, "better": "higher"}
    assert [gpu_report.verdict(value, entry) for value in (4.0, 3.9)] == ["met", "missed"]
    lower = entry | {"better": "lower"}
    assert [gpu_report.verdict(value, lower) for value in (4.0, 4.1)] == ["met", "missed"]
    assert gpu_report.verdict(float("nan"), entry) == "missed"
    assert gpu_report.verdict(1.0, {"expected": 1.0, "better": "higher"}) == gpu_report.verdict(1.0, None) == ""


def test_a_figure_that_was_foreseen_and_not_found_is_absent() -> None:
    expected = {
        ("a", "x"): {"expected": 1.0, "goal": 2.0, "better": "lower", "unit": "s"},
        ("a", "y"): {"expected": 3.0, "better": "lower"},
    }
    figures = [{"section": "a", "name": "x", "value": 1.5, "unit": "s", "facts": {}},
               {"section": "a", "name": "new", "value": 7.0, "unit": "", "facts": {}}]  # fmt: skip
    rows = gpu_report.judged([{"section": "a", "figures": figures}], expected)
    assert {row["name"]: row["verdict"] for row in rows} == {"x": "met", "new": "", "y": "absent"}
    text = gpu_report.table(rows)
    assert "<= 2" in text and len(text.splitlines()) == 4


def test_what_was_foreseen_is_complete_and_derived() -> None:
    names = {section.name for section in gpu_suite.SECTIONS} | {"calibration"}
    for (section, name), entry in gpu_report.expected_figures().items():
        assert section in names, f"no section brings {section}.{name}"
        assert entry["better"] in ("higher", "lower") and entry["derivation"], name
        assert set(entry) <= {"expected", "goal", "better", "unit", "derivation"}, name


def test_unknown_sections_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown sections nope"):
        gpu_suite.main(["--sections", "nope", "--out", str(tmp_path)])
    assert abs(sum(section.share for section in gpu_suite.SECTIONS) - 1.0) < 1e-9
