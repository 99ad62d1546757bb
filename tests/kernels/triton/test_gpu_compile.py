"""The kernels, as they are launched, compile for an H200: no spills, memory that fits, matrix units in every product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_compile.py"


def compile_all(out: Path, *options: str) -> dict:
    """In a process of its own: here kernels are interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(out.parent)
    }
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict = json.loads(out.read_text())
    return result


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return compile_all(tmp_path_factory.mktemp("few") / "out.json", "--smoke")


def test_a_decoding_layer_compiles(few: dict) -> None:
    kernels = [k for k in few["kernels"] if k["case"].startswith("experts")]
    assert [k["kernel"] for k in kernels] == ["weight_tiles", "weight_tiles", "_combine"]
    assert all(not k["faults"] for k in kernels)
    assert all(k["instructions"]["HGMMA"] and k["instructions"]["UTMALDG"] for k in kernels[:2])
    assert all(k["waits_first"] and k["instructions"]["ACQBULK"] for k in kernels)
    # No token count is compiled for: a product has one kernel for tall and one for short blocks, gate-up and down.
    assert few["variants"] == {"_count": 1, "_sum_over_chunks": 1, "_place": 1, "token_tiles": 4, "_combine": 1}


def test_warps_with_roles_compile_as_they_are_meant(few: dict) -> None:
    """No spills and no wait for products that nobody asked for (else a fault); 36 instructions of logits and 8 of values in either
    group's loop; around the loops 36 and 4 of the first tile, and 4 of a last one for each."""
    (kernel,) = (k for k in few["kernels"] if k["kernel"] == "attend_splits")
    assert not kernel["faults"] and kernel["stack_bytes"] == 0 and kernel["warps"] == 12
    assert kernel["instructions"]["HGMMA"] == 2 * (36 + 8) + 36 + 4 + 2 * 4
    assert kernel["instructions"]["USETMAXREG"] and kernel["instructions"]["LDGSTS"] == 36 + 36


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path: Path) -> None:
    kernels = compile_all(tmp_path / "out.json")["kernels"]
    assert {k["kernel"] for k in kernels} >= {
        "token_tiles",
        "weight_tiles",
        "block_tiles",
        "_place",
        "_combine",
        "_route",
        "_glu",
    }
    prompts = [k for k in kernels if k["kernel"] == "attend_tiles" and "bf16" in k["case"]]
    assert prompts and all(k["instructions"].get("HGMMA") for k in prompts)
    # Of prompts by warps with roles: 16 products a tile for each of two groups, and 8 before its first, of heads of 128.
    by_roles = [k for k in prompts if k["case"].endswith("x128 bf16 by roles")]
    assert by_roles and all(k["instructions"]["HGMMA"] == 2 * (8 + 16) for k in by_roles)
    # Codes reach the matrix units through registers alone: nothing a tile holds is exchanged through shared memory.
    packed = [k for k in kernels if k["kernel"] == "weight_tiles" and "bf16" not in k["case"]]
    for kernel in packed:
        products = [loop for loop in kernel["loops"] if "HGMMA" in loop]
        assert products and all(loop.get("STS", 0) <= 8 for loop in products), kernel["case"]
    assert packed
