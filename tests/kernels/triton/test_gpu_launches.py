"""What a decode step launches and what its sizes make Triton compile, counted without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_launches.py"


def test_launches_are_few_and_sizes_are_not_compiled_for(tmp_path: Path) -> None:
    """In a process of its own: here kernels are interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--out", str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for step in found["steps"]:
        assert step["kernels_of_a_layer"] <= MOST_OF_A_LAYER and step["kernels_around"] <= MOST_AROUND, step
        assert "torch._to_copy" not in step["layer"], "a cast is a launch: routers are kept in the activations' type"
    needed = found["compilations"]
    one_each = {"attend_splits", "attend_tiles", "combine_splits", "list_work", "rotate_heads", "_route", "_embed",
                "spread_rows", "scan_chunks", "weigh_chunks", "draw", "edit_chunks", "count_tokens", "list_tops", "join_tops"}  # fmt: skip
    assert one_each <= set(needed) and all(needed[name] == 1 for name in one_each), needed
    # Products and groups have one for each bucket of the table that the sizes fall into, gate-up and down, tall and short, and for
    # few pairs.
    assert max(needed.values()) <= 6, needed
    for step in found["steps"]:
        layers = (step["kernels"] - step["kernels_around"]) // step["kernels_of_a_layer"]
        in_turn = layers * of_torch(step["layer"]) + of_torch(step["around"])
        assert step["overlapped"] == step["kernels"] - in_turn, "only BLAS and torch's own wait for an end"


def of_torch(kernels: dict[str, int]) -> int:
    return sum(count for name, count in kernels.items() if name.startswith("torch."))


MOST_OF_A_LAYER = 12
MOST_AROUND = 21
