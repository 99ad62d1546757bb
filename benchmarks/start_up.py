"""How long until a checkpoint's weights can serve: at the first start, which packs them, and at the second, which reads them?

Each start is a process of its own, timed from the folder to the packed weights in memory (imports aside); what the first one
spends on keeping them, while it could serve already, is told apart. `cold` has the files dropped from the page cache before;
`plain read` reads the very file that the second start reads, by as many threads into memory that is there, and does nothing
with it: the disk's (or the page cache's) own pace.

    python benchmarks/start_up.py bf16=/tmp/moe-1.3b int4-g32=/tmp/moe-1.3b-int4
    python benchmarks/start_up.py --smoke
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import random_checkpoint
from provenance import provenance, save
from ridgepoint.kernels import native
from ridgepoint.models.weight_cache import load_cached
from ridgepoint.units import seconds, si

READ = 4 << 20


def load_once(folder: Path, cache: Path) -> dict[str, Any]:
    """One start, in this process."""
    told: list[str] = []
    began = time.perf_counter()
    loaded = load_cached(folder, torch.bfloat16, None, cache, told.append, smallest_bytes=0)
    ready, said = time.perf_counter() - began, told[-1] if loaded.keeping is None else told[0]
    if loaded.keeping is not None:
        loaded.keeping.join()
    return {"seconds": ready, "said": said, "kept_s": time.perf_counter() - began - ready}


def read_plainly(file: Path) -> float:
    """Seconds to read a file into memory that is already there, by as many threads as the loader has."""
    size = file.stat().st_size
    buffer = native.allocate(size)
    buffer[::4096] = 1  # its pages exist
    fd = os.open(file, os.O_RDONLY)
    began = time.perf_counter()
    with ThreadPoolExecutor(native.num_threads()) as pool:
        list(pool.map(lambda at: os.preadv(fd, [buffer[at : at + READ].data], at), range(0, size, READ)))
    took = time.perf_counter() - began
    os.close(fd)
    return took


def drop_from_page_cache(files: list[Path]) -> None:
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def start(folder: Path, cache: Path) -> dict[str, Any]:
    """One start, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(folder), str(cache)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def measure(folder: Path, cache: Path, repeats: int) -> list[dict[str, Any]]:
    """First and second starts of one checkpoint, cold and warm, and the plain reads beside them."""
    weights = sorted(folder.glob("*.safetensors"))
    stored_bytes = sum(path.stat().st_size for path in weights)
    rows: list[dict[str, Any]] = []

    def add(what: str, took: list[float], num_bytes: int, **more: Any) -> None:
        best = min(took)
        rows.append({"what": what, "seconds": best, "all_seconds": took, "bytes": num_bytes,
                     "bytes_per_s": num_bytes / best, **more})  # fmt: skip

    drop_from_page_cache(weights)
    first = start(folder, cache)
    (file,) = cache.glob("*.packed")
    add("first start, cold (packs)", [first["seconds"]], stored_bytes, said=first["said"])
    add("keeping, while it serves", [first["kept_s"]], stored_bytes)
    packed_bytes = file.stat().st_size
    for warmth in ("cold", "warm"):
        reads, starts = [], []
        for _ in range(repeats):
            if warmth == "cold":
                drop_from_page_cache([file])
            reads.append(read_plainly(file))
            if warmth == "cold":
                drop_from_page_cache([file])
            second = start(folder, cache)
            assert "weight cache used" in second["said"], second["said"]
            starts.append(second["seconds"])
        add(f"second start, {warmth}", starts, packed_bytes, said=second["said"])
        add(f"plain read, {warmth}", reads, packed_bytes)
        rows[-2]["frac_of_plain_read"] = rows[-2]["bytes_per_s"] / rows[-1]["bytes_per_s"]
    return rows


def table(result: dict[str, Any]) -> str:
    """Seconds and bytes/s of each start, and the share of a plain read's pace."""
    lines = [f"{'checkpoint':<12}{'start':<38}{'time':>10}{'bytes':>11}{'bytes/s':>12}{'of a plain read':>17}"]
    for name, rows in result["checkpoints"].items():
        for row in rows:
            frac = f"{row['frac_of_plain_read']:.0%}" if "frac_of_plain_read" in row else "-"
            lines.append(
                f"{name:<12}{row['what']:<38}{seconds(row['seconds']):>10}{si(row['bytes'], 'B'):>11}"
                f"{si(row['bytes_per_s'], 'B/s'):>12}{frac:>17}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a random checkpoint of a few hundred kilobytes, once")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    parser.add_argument("--child", nargs=2, type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(load_once(*args.child)))
        return
    with tempfile.TemporaryDirectory(prefix="ridgepoint-start-up-") as scratch:
        if args.smoke:
            folders = {"smoke": random_checkpoint.write(Path(scratch) / "model", random_checkpoint.SMOKE)}
        else:
            folders = {name: Path(folder) for name, _, folder in (given.partition("=") for given in args.checkpoints)}
        measured = {}
        for name, folder in folders.items():
            print(f"starting {name} ...", file=sys.stderr, flush=True)
            measured[name] = measure(folder, Path(scratch) / name, 1 if args.smoke else args.repeats)
            shutil.rmtree(Path(scratch) / name)
    result = {
        "schema": "ridgepoint.benchmark.start_up/2",
        **provenance(__doc__),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": native.num_threads(),
        "checkpoints": measured,
    }
    save(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
