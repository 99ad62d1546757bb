"""Fill the generated blocks of README.md and docs/*.md: output of commands, and tables of benchmark results.

    python docs/generate.py            rewrite what changed
    python docs/generate.py --check    exit 1 and name each block that is not current

A block stands between `<!-- run: ridgepoint ARGUMENTS -->` or `<!-- results: FILE.json -->` and `<!-- end -->`. A run
block holds the command and its standard output; a results block the table that the benchmark's own `table` prints from
its stored JSON (or `brief`, where that word follows the file), with the command and commit it came from. Text outside
blocks is never touched.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (run|results): (.+?) -->\n)(.*?)(<!-- end -->)", re.S)


def run(command: str) -> str:
    """A console transcript of one `ridgepoint` command: wide enough for its tables, without colour."""
    words = shlex.split(command)
    if words[0] != "ridgepoint":
        raise SystemExit(f"only ridgepoint commands are run here, got {command!r}")
    environment = os.environ | {"COLUMNS": "118", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C.UTF-8"}
    environment["RIDGEPOINT_ISA"] = "portable"  # so that a model's greedy text does not depend on the processor
    done = subprocess.run(
        [sys.executable, "-m", "ridgepoint.cli.main", *words[1:]],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} exited with {done.returncode}: {done.stderr.strip()}")
    body = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    return f"```console\n$ {command}\n{body}\n```\n"


def results(what: str) -> str:
    """The table, or the brief one, of one benchmark result, with its provenance below."""
    name, _, form = what.partition(" ")
    if form not in ("", "brief"):
        raise SystemExit(f"a results block is FILE.json or FILE.json brief, got {what!r}")
    result = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "src")]
    script = re.search(r"benchmarks/(\w+)\.py", result["command"])
    if script is None:
        raise SystemExit(f"{name}: its command names no benchmark")
    benchmark = importlib.import_module(script[1])
    hardware = result["hardware"]
    where = ", ".join(f"{key} {value}" for key, value in hardware.items() if value is not None)
    shown = benchmark.brief(result) if form else benchmark.table(result)
    return f"```text\n{shown}\n```\n\n`{result['command']}` at {result['commit'][:10]}; {where}.\n"


def fill(text: str) -> str:
    """`text` with every block made anew."""

    def renew(match: re.Match[str]) -> str:
        opening, kind, what, _, closing = match.groups()
        return opening + (run(what) if kind == "run" else results(what)) + closing

    return BLOCK.sub(renew, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        renewed = fill(text)
        if renewed != text:
            stale.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(renewed)
    print("\n".join(stale))
    if stale and arguments.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
