"""The GPU suite without a GPU: a smoke run, what it makes of figures, and a section that fails beside one that does not."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gpu_processes
import gpu_report
import gpu_roles
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
    assert {("rates", "overlapped_launches_hold"), ("rates", "l2_bytes_per_s")} <= found
    assert not (tmp_path / gpu_suite.IN_TURN).exists()
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
    notes = next(section["notes"] for section in report["sections"] if section["section"] == "rates")
    assert any("memory_bytes_per_s was not measured: shares of it are shares of 4.3e+12" in note for note in notes)
    assert told.index("FAILED rates") < told.index("FAILED norm"), "told as soon as it is known"
    assert (tmp_path / "precompile.log").exists()


def test_rates_that_were_measured_are_what_others_divide_by() -> None:
    rates = {
        "section": "rates",
        "figures": [{"name": "memory_bytes_per_s", "value": 5e12}, {"name": "launch_us", "value": 3.0}],
        "notes": [],
    }
    for _ in range(2):  # after every section
        known = gpu_suite.ceilings([rates])
    assert known["memory_bytes_per_s"] == 5e12 and "launch_us" not in known
    assert known["bf16_flops_per_s"] == gpu_report.expected_figures()["rates", "bf16_flops_per_s"]["expected"]
    assert len([note for note in rates["notes"] if "bf16" in note]) == 1


@pytest.mark.parametrize("why", [None, "in a graph they leave 3 of 9 numbers wrong"])
def test_where_launches_cannot_be_overlapped_the_sections_after_are_told(
    why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = SimpleNamespace(
        overlap_fault=lambda device, capture: why
    )  # the real one would import Triton, uninterpreted
    monkeypatch.setitem(sys.modules, "ridgepoint.kernels.overlap_trial", trial)
    run = gpu_report.Run(section="rates", device=torch.device("cpu"), smoke=True, budget_s=1.0, out=tmp_path, rates={}, log=lambda line: None)  # fmt: skip
    with run.apart("trial"):
        gpu_suite._try_overlap(run)
    assert [figure.value for figure in run.figures] == [float(why is None)]
    assert (tmp_path / gpu_suite.IN_TURN).exists() == bool(run.failures) == (why is not None)


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


GOALS = {
    "experts": {"forward_32768_2048_768_tflops", "forward_32768_2048_768_over_grouped_mm", "forward_32768_4096_1536_tflops",
                "decode_1_us", "decode_4_us", "decode_16_bandwidth_frac", "decode_32_bandwidth_frac", "decode_128_bandwidth_frac",
                "decode_4096_tflops"},
    "paged_attention": {"decode_64x4096_bandwidth_frac"},
    "mla_attention": {"decode_64x4096_roof_frac", "decode_64x4096_16_heads_bandwidth_frac"},
    "model": {"start_s", "decode_1_over_floor", "decode_64_floor_frac", "decode_256_floor_frac", "prefill_2048_floor_frac",
              "prefill_8192_floor_frac"},
    "calibration": {"median_error_frac"},
    "gpt_oss_120b": {"tpot_ms_4", "tok_per_s_64"},
    "step": {"launch_us_1", "launch_us_64", "syncs"},
}  # fmt: skip


def test_every_goal_is_foreseen_and_is_brought_before_what_has_none() -> None:
    expected = gpu_report.expected_figures()
    for section, names in GOALS.items():
        for name in names:
            assert "goal" in expected[section, name], f"{section}.{name}"
    order = [section.name for section in gpu_suite.SECTIONS]
    with_goals = max(order.index(section) for section in GOALS if section != "calibration")
    assert with_goals < min(order.index(section) for section in ("linear", "sample", "norm", "tests"))
    assert order[:3] == ["rates", "checks", "tune"], "what others are divided by, and what they run with"


def test_what_fails_apart_fails_the_section_and_leaves_the_rest(tmp_path: Path) -> None:
    def work(run: gpu_report.Run) -> None:
        for name in ("first", "second"):
            with run.apart(name):
                if name == "first":
                    raise ValueError("broken")
                run.figure(name, 2.0, "us")

    found = gpu_suite.run_section(
        gpu_suite.Section("x", 1.0, work), smoke=True, budget_s=1.0, out=tmp_path, known={}, result=tmp_path / "x.json"
    )
    assert [figure["name"] for figure in found["figures"]] == ["second"]
    assert found["error"] == "first: ValueError: broken"
    assert json.loads((tmp_path / "x.json").read_text())["notes"] == ["FAILED first: ValueError: broken"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="parts succeed where there is a GPU")
def test_parts_of_a_section_fail_each_by_itself(tmp_path: Path) -> None:
    section = next(section for section in gpu_suite.SECTIONS if section.parts)
    two = dataclasses.replace(section, parts=section.parts[-2:])
    found = gpu_suite.in_own_process(two, budget_s=20.0, left_s=60.0, out=tmp_path)
    assert found["figures"] == [] and len(found["notes"]) >= 2
    assert all((tmp_path / f"section-checks-{part}.log").exists() for part in two.parts)
    assert found["error"] and "sample" in found["error"] and "norm" in found["error"]


def test_what_a_section_found_before_it_died_is_kept(tmp_path: Path) -> None:
    """Killed outright, as a broken device or the clock would: the figures until then are in its file."""
    (tmp_path / "dying.py").write_text(
        "import os, sys, pathlib\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import gpu_suite\n"
        "def work(run):\n"
        "    run.figure('first', 1.0, 'us')\n"
        "    os._exit(9)\n"
        "gpu_suite.run_section(gpu_suite.Section('dying', 1.0, work), smoke=True, budget_s=1.0, out=pathlib.Path('.'), known={},\n"
        "                      result=pathlib.Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "dying.py"), str(tmp_path / "found.json")])
    assert done.returncode == 9
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(figure["name"], figure["value"]) for figure in found["figures"]] == [("first", 1.0)]


def test_a_section_has_no_more_time_than_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def ended(command: list[str], log: object, limit_s: float) -> str:
        limits.append(limit_s)
        return gpu_processes.LATE

    monkeypatch.setattr(gpu_suite, "run_in_time", ended)
    section = gpu_suite.SECTIONS[0]
    for budget_s, left_s in ((10.0, 400.0), (100.0, 20.0)):
        found = gpu_suite.in_own_process(section, budget_s=budget_s, left_s=left_s, out=tmp_path)
        assert found["figures"] == [] and "took longer than its time" in found["error"]
    assert limits == pytest.approx([gpu_suite.GRACE * 10 + gpu_suite.STARTING_S, 20 + gpu_suite.STARTING_S], abs=5.0)


def test_warps_with_roles_are_tried_once_their_checks_have_ended_well(tmp_path: Path) -> None:
    assert gpu_roles.to_try(tmp_path) == "experts,paged_prompt,mla_decode", "nobody has checked"
    for part in ("moe_experts", "paged_attention", "mla_attention", "linear"):
        gpu_roles.on_trial(tmp_path, part)
    gpu_roles.cleared(tmp_path, "paged_attention")
    gpu_roles.found_wrong(tmp_path, "mla_attention", "0.3 > 0.01")
    assert gpu_roles.to_try(tmp_path) == "paged_prompt"
    assert (tmp_path / "no-roles-mla_attention.txt").read_text() == "0.3 > 0.01"
    assert "did not end" in (tmp_path / "no-roles-moe_experts.txt").read_text()


@pytest.mark.parametrize(("then", "code"), [("time.sleep(600)", gpu_processes.LATE), ("sys.exit(3)", 3)])
def test_whatever_a_process_started_ends_with_it(then: str, code: int | str, tmp_path: Path) -> None:
    """As the tuner is by its section: what is started holds a pipe until it ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    script = tmp_path / "starts.py"
    script.write_text(
        "import subprocess, sys, time\n"
        f"held = subprocess.Popen(['sh', '-c', 'exec 3> {pipe}; echo held; exec sleep 600'], stdout=subprocess.PIPE)\n"
        "held.stdout.readline()\n" + then
    )
    with (tmp_path / "log").open("w") as log:
        assert (
            gpu_processes.run_in_time([sys.executable, str(script)], log, 1.5 if code == gpu_processes.LATE else 60.0)
            == code
        )
    assert select.select([reading], [], [], 10.0)[0] and os.read(reading, 1) == b"", "it still holds the pipe"
    os.close(reading)


def test_the_tuner_keeps_what_it_found_when_a_shape_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        shape = command[command.index("--shape") + 1]
        if shape == "decode-2816":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        with (tmp_path / "tuned.toml").open("a") as table:
            table.write("[[choice]]\n")
        return subprocess.CompletedProcess(command, int(shape == "linear-4096"), "3 choices", "Error: no memory")

    monkeypatch.setattr(gpu_suite.subprocess, "run", ran)
    run = gpu_report.Run(
        section="tune",
        device=torch.device("cpu"),
        smoke=False,
        budget_s=60.0,
        out=tmp_path,
        rates={},
        log=lambda line: None,
    )
    with pytest.raises(AssertionError, match="failed for linear-4096"):
        gpu_suite.tune(run)
    assert [(f.name, f.value) for f in run.figures] == [("choices", len(gpu_suite.TUNED) - 1)]
    assert sum("3 choices" in note for note in run.notes) == len(gpu_suite.TUNED) - 2
    assert any("are kept" in note for note in run.notes) and any(
        "left as shipped: Error: no memory" in note for note in run.notes
    )
