"""How close does everything come to the roofs of one GPU, and is it right? One script, one run, every answer.

    python benchmarks/gpu_suite.py --minutes 8 --out results/
    python benchmarks/gpu_suite.py --sections rates,experts --minutes 3
    python benchmarks/gpu_suite.py --smoke

Runs from the source tree with torch and Triton alone. Each section is a process with its own budget of time: one that fails, hangs or
breaks the device is reported, and the others run. Rates are measured first, and every share of a roof is a share of them; meanwhile
the other cores compile what the sections will launch. After every section figures are printed and suite.json is whole. Writes that,
hardware.toml and tuned kernel tables to --out, prints measured beside expected figures (gpu_expected.toml), and exits
with 1 if a section failed or a goal was missed. `--smoke` runs tiny shapes on the CPU, Triton's kernels in its interpreter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import gpu_roles
import provenance
from gpu_processes import beside, run_in_time, write_whole
from gpu_report import Run, expected_figures, judged, line_of, table

GRACE = 1.5  # a section is ended after this many times its budget, plus STARTING_S
STARTING_S = 30.0
IN_TURN = "in-turn.txt"  # why launches are not overlapped, where they are not
SMOKE_RATES = {"memory_bytes_per_s": 1e12, "bf16_flops_per_s": 1e14, "fp32_flops_per_s": 1e13}


@dataclass(frozen=True)
class Section:
    """`share` of the whole time; `work` imports what it needs when it runs, so that the parent never touches the device.
    `small`: few enough calls to be interpreted in a smoke run. `parts` run side by side, each in a process of its own: they time
    nothing, and compiling would take longer than all else they do."""

    name: str
    share: float
    work: Callable[[Run], None]
    small: bool = True
    parts: tuple[str, ...] = ()


def rates(run: Run) -> None:
    """Ceilings of this device, measured, and the hardware file they make; then whether launches may be overlapped here. What
    cannot be measured costs its own figure alone."""
    import torch

    from ridgepoint.cost import cuda_machine
    from ridgepoint.cost.machine import MachineMeasure

    budget_s = run.budget_s / 30
    sizes, levels = ((32,), (1 << 16,)) if run.smoke else (cuda_machine.SIZES, cuda_machine.LEVEL_BYTES)
    best_s = _once_s if run.smoke else partial(cuda_machine.best_device_s, torch, budget_s=budget_s)
    flops: dict[str, dict[int, float]] = {}
    by_bytes: dict[int, float] = {}
    overheads: dict[str, float] = {}
    with run.apart("bytes"):
        by_bytes |= cuda_machine.byte_rates(torch, run.device, levels, best_s, run.log)
        run.figure("memory_bytes_per_s", by_bytes[max(by_bytes)], "B/s", by_bytes=by_bytes)
    kinds: tuple[str, ...] = ()
    with run.apart("types of products"):
        kinds = cuda_machine.matrix_kinds(torch, run.device)
    for kind in kinds:
        with run.apart(f"{kind} products"):
            flops[kind] = cuda_machine.matrix_rates(torch, run.device, sizes, best_s, run.log, kind)
            run.figure(f"{kind}_flops_per_s", max(flops[kind].values()), "FLOP/s", by_size=flops[kind])
    if not run.smoke:
        with run.apart("launches"):
            overheads |= cuda_machine.overheads_s(torch, run.device, run.log)
            for name, seconds in overheads.items():
                run.figure(name.removesuffix("_s") + "_us", seconds * 1e6, "us")
    with run.apart("L2 cache"):
        from gpu_cache import l2_bytes_per_s

        run.figure("l2_bytes_per_s", l2_bytes_per_s(run.device, best_s), "B/s")
    with run.apart("hardware file"):
        measured = MachineMeasure(
            name="measured-gpu", date=time.strftime("%Y-%m-%d"), engine=f"torch {torch.__version__} cuda",
            device="smoke" if run.smoke else torch.cuda.get_device_name(), measure_flops_per_s=flops,
            measure_bytes_per_s=by_bytes, measure_overheads_s=overheads,
            measure_step_overhead_s=overheads.get("launch_s", 0.0),
        )  # fmt: skip
        (run.out / "hardware.toml").write_text(measured.to_toml())
    with run.apart("overlapped launches"):
        _try_overlap(run)


def _try_overlap(run: Run) -> None:
    """The sections after this one launch in turn where the trial fails, or kills this process."""
    from ridgepoint.kernels.overlap_trial import overlap_fault

    (run.out / IN_TURN).write_text("the trial of overlapped launches did not end")
    why = overlap_fault(run.device, capture=(lambda body: body) if run.smoke else None)
    run.figure("overlapped_launches_hold", float(why is None), "")
    if why is None:
        (run.out / IN_TURN).unlink()
    else:
        (run.out / IN_TURN).write_text(why)
        raise AssertionError(f"{why}; every section after this one launches in turn")


def _once_s(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return max(1e-9, time.perf_counter() - started_s)


# What the sections after this one run, dearest first: a shape, its format and the token counts that they use.
TUNED = (
    ("qwen3-30b-a3b", "bf16", (1, 4, 16, 64, 256, 1024, 2048, 8192)),
    ("decode-2816", "bf16", (1, 4, 16, 32, 128, 4096)),
    ("gpt-oss-120b", "mxfp4", (4, 64, 1024)),
    ("deepseek-v3", "bf16", (64,)),
    ("linear-4096", "mxfp4", (1, 16, 64)),
)


def tune(run: Run) -> None:
    """Try configurations of the kernels that have a choice, into a table that the sections after this one read. Every shape may
    take half of the time that is left, and what it found is kept when the next one fails."""
    if run.smoke:
        run.note("left to the tuner's own smoke run")
        return
    ends_s = time.perf_counter() + run.budget_s
    failed = []
    for place, (shape, fmt, tokens) in enumerate(TUNED):
        left_s = max(1.0, (ends_s - time.perf_counter()) / (1 if place == len(TUNED) - 1 else 2))
        command = [sys.executable, str(ROOT / "benchmarks" / "tune_kernels.py"), "--shape", shape, "--format", fmt,
                   "--out", str(run.out / "tuned.toml"), "--seconds", f"{left_s:.1f}", "--tokens", *map(str, tokens)]  # fmt: skip
        try:
            done = subprocess.run(command, timeout=left_s + STARTING_S, capture_output=True, text=True)
            told = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["nothing was told"]
            run.note(told[-1] if done.returncode == 0 else f"{shape} is left as shipped: {told[-1]}")
            failed += [] if done.returncode == 0 else [shape]
            for line in done.stdout.splitlines():
                run.log(line)
        except subprocess.TimeoutExpired:
            run.note(f"{shape} took longer than {left_s:.0f} s: the choices it had made are kept")
    table = run.out / "tuned.toml"
    run.figure("choices", table.read_text().count("[[choice]]") if table.exists() else 0, "")
    if failed:
        raise AssertionError(f"the tuner failed for {', '.join(failed)}")


def tests(run: Run) -> None:
    """The tests that need a GPU, and the kernels' own, where they find one."""
    folders = [folder for folder in ("tests/gpu", "tests/kernels/triton") if (ROOT / folder).exists()]
    if run.smoke:
        run.note("left to pytest itself: " + ", ".join(folders))
        return
    if importlib.util.find_spec("pytest") is None:
        run.note("pytest is not installed here: the checks above are all there is")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=GRACE * run.budget_s)
    (run.out / "tests.log").write_text(done.stdout + done.stderr)
    run.note(next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output"))
    if done.returncode:
        raise AssertionError(f"pytest ended with {done.returncode}: see tests.log")


def checks(run: Run) -> None:
    import gpu_checks

    gpu_checks.checks(run)


def kernel_section(name: str) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        import gpu_kernels

        getattr(gpu_kernels, name)(run)

    return work


def model_section(name: str) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        import gpu_model

        getattr(gpu_model, name)(run)

    return work


CHECKED_APART = ("moe_experts", "linear", "paged_attention", "mla_attention", "sample", "rows")

# What must hold comes before what is good to know, and what later sections read before those: if time runs out, it does so at
# the end.
SECTIONS = (
    Section("rates", 0.06, rates),
    Section("checks", 0.09, checks, parts=CHECKED_APART),
    Section("tune", 0.13, tune),
    Section("experts", 0.10, kernel_section("experts")),
    Section("model", 0.22, model_section("model"), small=False),
    Section("step", 0.07, model_section("step"), small=False),
    Section("paged_attention", 0.06, kernel_section("paged")),
    Section("mla_attention", 0.04, kernel_section("mla")),
    Section("gpt_oss_120b", 0.10, model_section("gpt_oss"), small=False),
    Section("linear", 0.04, kernel_section("linear_section")),
    Section("sample", 0.04, kernel_section("samples")),
    Section("norm", 0.02, kernel_section("norms")),
    Section("tests", 0.03, tests),
)


def run_section(
    section: Section,
    *,
    smoke: bool,
    budget_s: float,
    out: Path,
    known: dict[str, float],
    result: Path | None = None,
    part: str | None = None,
) -> dict[str, Any]:
    """One section in this process; what it found before it failed is kept, and written to `result` as it comes."""
    import torch

    def save(run: Run) -> None:
        if result is not None:
            write_whole(result, json.dumps(run.result(time.perf_counter() - started_s)))

    run = Run(
        section=section.name, device=torch.device("cpu" if smoke else "cuda"), smoke=smoke, budget_s=budget_s, out=out,
        rates=known, part=part, log=lambda line: print(f"  {line}", file=sys.stderr, flush=True), save=save,
    )  # fmt: skip
    started_s = time.perf_counter()
    error = None
    try:
        section.work(run)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        traceback.print_exc()
    if run.failures:
        error = "; ".join([*run.failures, *([error] if error else [])])
    return run.result(time.perf_counter() - started_s) | {"error": error}


def in_own_process(section: Section, *, budget_s: float, left_s: float, out: Path) -> dict[str, Any]:
    """The same in processes, one or one a part, that are ended when they take far longer than the budget, or than all that is
    left."""
    started_s = time.perf_counter()
    ends_s = started_s + min(GRACE * budget_s + STARTING_S, left_s + STARTING_S)
    with ThreadPoolExecutor(max(1, len(section.parts))) as pool:  # threads that wait
        pieces = list(
            pool.map(lambda part: _in_process(section, part, budget_s, ends_s, out), section.parts or (None,))
        )
    errors = [piece["error"] for piece in pieces if piece["error"] is not None]
    return {
        "section": section.name, "seconds": time.perf_counter() - started_s,
        "figures": [figure for piece in pieces for figure in piece["figures"]],
        "notes": [note for piece in pieces for note in piece["notes"]], "error": "; ".join(errors) if errors else None,
    }  # fmt: skip


def _in_process(section: Section, part: str | None, budget_s: float, ends_s: float, out: Path) -> dict[str, Any]:
    name = _file_name(section.name, part)
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", section.name, "--seconds", f"{budget_s:.1f}", "--out", str(out)]
    command += [] if part is None else ["--part", part]
    with (out / f"{name}.log").open("w") as log:
        code = run_in_time(command, log, max(1.0, ends_s - time.perf_counter()))
    found = json.loads(result.read_text()) if result.exists() else {"section": section.name, "figures": [], "notes": []}
    found.setdefault("error", None)
    if code != 0 and found["error"] is None:
        found["error"] = f"its process ended with {code}: see {name}.log"
    return found


def _file_name(section: str, part: str | None) -> str:
    return f"section-{section}" + ("" if part is None else f"-{part}")


def ceilings(results: list[dict[str, Any]]) -> dict[str, float]:
    """Rates by name, for the sections that divide by them: measured, or assumed where that failed, and then said."""
    first = next(result for result in results if result["section"] == "rates")
    found = {figure["name"]: figure["value"] for figure in first["figures"] if figure["name"].endswith("_per_s")}
    for (section, name), entry in expected_figures().items():
        if section == "rates" and name.endswith("_per_s") and name not in found:
            found[name] = entry["expected"]
            note = f"{name} was not measured: shares of it are shares of {entry['expected']:.3g}, which is assumed"
            if note not in first["notes"]:
                first["notes"].append(note)
    return found


def describe_machine() -> dict[str, Any]:
    """The device, the versions and what Triton links its launches with, from a process of their own: nothing here may hold on to the
    GPU."""
    code = (
        "import importlib, json, os, shutil, torch\n"
        "gpu = torch.cuda.is_available()\n"
        "facts = {'torch': torch.__version__, 'gpu': torch.cuda.get_device_name() if gpu else None}\n"
        "for name in ('triton', 'numpy', 'pytest'):\n"
        "    try:\n        facts[name] = importlib.import_module(name).__version__\n"
        "    except ImportError:\n        facts[name] = None\n"
        "facts['compiler'] = os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang')\n"
        "print(json.dumps(facts))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-500:]}


def prepare_interpreter() -> None:
    """Make Triton interpret its kernels over CPU tensors. Before anything imports Triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    repairs = ROOT / "tests" / "kernels" / "triton"
    if (repairs / "interpreter_repairs.py").exists():
        sys.path.insert(0, str(repairs))
        import interpreter_repairs

        interpreter_repairs.install()


def smoke_section(section: Section, out: Path, *, interpret: bool) -> dict[str, Any]:
    """A section on tiny shapes; with `interpret` operators take the paths they would on a GPU."""
    from ridgepoint.kernels import dispatch

    order = dispatch.ORDER["cpu"]
    dispatch.ORDER["cpu"] = dispatch.ORDER["cuda"] if interpret else order
    try:
        with dispatch.forced(None):  # forgets the paths chosen so far, here and at its end
            return run_section(section, smoke=True, budget_s=0.01, out=out, known=SMOKE_RATES)
    finally:
        dispatch.ORDER["cpu"] = order


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-suite")))
    parser.add_argument("--sections", help="names, comma-separated; rates are measured in any case")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--interpret", action="store_true", help="with --smoke: whole models through Triton's interpreter too; minutes"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        return _child(args)
    if args.smoke:
        prepare_interpreter()
    # What the sections will launch goes to Triton's cache, and the GPU is left alone.
    ahead = ROOT / "benchmarks" / "gpu_precompile.py"
    with nullcontext() if args.smoke else beside(ahead, args.out / "precompile.log"):
        return _run_all(args, _chosen(args.sections))


def _run_all(args: argparse.Namespace, chosen: list[Section]) -> int:
    """One section after the other. Whatever ends this by force loses the section it is in: JSON and output are up to date."""
    whole_share = sum(section.share for section in chosen)
    ends_s = time.perf_counter() + 60 * args.minutes
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    machine = describe_machine()
    print("machine: " + ", ".join(f"{name} {fact}" for name, fact in machine.items()), flush=True)
    for place, section in enumerate(chosen):
        left_s = ends_s - time.perf_counter()
        budget_s = left_s * section.share / whole_share  # what one leaves, the others share
        whole_share -= section.share
        print(f"[{place + 1}/{len(chosen)}] {section.name}", file=sys.stderr, flush=True)
        if left_s <= 0:
            results.append({"section": section.name, "figures": [], "notes": [], "error": "no time was left"})
        elif args.smoke:
            results.append(smoke_section(section, args.out, interpret=section.small or args.interpret))
        else:
            results.append(in_own_process(section, budget_s=budget_s, left_s=left_s, out=args.out))
        known = SMOKE_RATES if args.smoke else ceilings(results)
        (args.out / "rates.json").write_text(json.dumps(known))
        expected = {} if args.smoke else expected_figures()  # tiny shapes on a CPU meet no goal
        rows = judged(results, expected)
        found = {"machine": machine, "smoke": args.smoke, "sections": results, "rows": rows}
        provenance.save(args.out / "suite.json", provenance.provenance(__doc__) | found)
        _show(results[-1], expected)
    return _conclude(rows, results, chosen)


def _show(result: dict[str, Any], expected: dict[tuple[str, str], dict[str, Any]]) -> None:
    """What a section brought, as soon as it has."""
    print(f"{result['section']}: {result.get('seconds', 0.0):.0f} s")
    for row in judged([result], expected):
        if row["verdict"] != "absent":
            print(line_of(row))
    for note in result["notes"]:
        print(f"  {note}")
    if result["error"] is not None:
        print(f"FAILED {result['section']}: {result['error']}")
    sys.stdout.flush()


def _chosen(names: str | None) -> list[Section]:
    by_name = {section.name: section for section in SECTIONS}
    wanted = list(by_name) if names is None else ["rates", *(name for name in names.split(",") if name != "rates")]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise SystemExit(f"unknown sections {', '.join(unknown)}; allowed: {', '.join(by_name)}")
    return [section for section in SECTIONS if section.name in wanted]


def _child(args: argparse.Namespace) -> int:
    """One section, for the parent: its result goes to a file."""
    os.environ["RIDGEPOINT_TRY_ROLES"] = gpu_roles.to_try(args.out)  # here and in what this starts
    tuned = args.out / "tuned.toml"
    if tuned.exists():
        os.environ["RIDGEPOINT_TUNED"] = str(tuned)
    known_file = args.out / "rates.json"
    known = json.loads(known_file.read_text()) if known_file.exists() else {}
    why_in_turn = args.out / IN_TURN
    if args.one == "rates":
        why_in_turn.unlink(missing_ok=True)
    elif why_in_turn.exists():
        os.environ["RIDGEPOINT_IN_TURN"] = "1"  # here and in what this starts
    section = next(section for section in SECTIONS if section.name == args.one)
    file = args.out / f"{_file_name(section.name, args.part)}.json"
    found = run_section(
        section, smoke=False, budget_s=args.seconds, out=args.out, known=known, result=file, part=args.part
    )
    write_whole(file, json.dumps(found))
    return 0 if found["error"] is None else 1


def _conclude(rows: list[dict[str, Any]], results: list[dict[str, Any]], chosen: list[Section]) -> int:
    """Print, and decide the exit code. Figures foreseen for sections that were not asked for are left out."""
    names = {section.name for section in chosen}
    if "model" in names:
        names.add("calibration")
    rows = [row for row in rows if row["section"] in names]
    print(table(rows))
    failed = [result for result in results if result["error"] is not None]
    for result in failed:
        print(f"FAILED {result['section']}: {result['error']}")
    return 1 if failed or any(row["verdict"] in ("missed", "absent") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
