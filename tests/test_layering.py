"""The architecture as a test: who may import whom, and where torch begins."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "ridgepoint"

BASE = {"errors", "units"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "catalog": set(),
    "cost": {"catalog"},
    "sched": set(),
    "plan": {"catalog", "cost", "sched"},
    "sim": {"catalog", "cost", "sched", "plan"},
    "kernels": {"catalog"},
    "nn": {"catalog", "kernels"},
    "models": {"catalog", "kernels", "nn"},
    "quantize": {"catalog", "kernels", "nn", "models"},
    "dist": {"catalog"},
    "engine": {"catalog", "cost", "sched", "kernels", "nn", "models", "dist"},
    "train": {"catalog", "cost", "kernels", "nn", "models", "dist"},
    "recall": {"catalog", "kernels", "nn", "models"},
    "server": {"catalog", "sched", "engine"},
    "cli": {
        "catalog", "cost", "sched", "plan", "sim", "kernels", "nn", "models", "dist",
        "quantize", "engine", "train", "recall", "server",
    },
}  # fmt: skip
TORCH_FREE = {"errors", "units", "catalog", "cost", "sched", "plan", "sim", "cli", "server"}


def _package_of(path: Path) -> str:
    parts = path.relative_to(SRC).parts
    return parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at_top_level) of every import in the file, relative ones resolved."""
    found: list[tuple[str, bool]] = []
    tree = ast.parse(path.read_text())
    base = ["ridgepoint", *path.relative_to(SRC).with_suffix("").parts]
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in inside and id(node) not in typing_only
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            found.append((module, top))
            found += [(f"{module}.{alias.name}", top) for alias in node.names]
    return found


FILES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_downwards(path: Path) -> None:
    package = _package_of(path)
    if package in {"__init__", "__main__"}:
        return
    assert package in ALLOWED, f"{package} is not a layer: add it to ALLOWED and say why in ARCHITECTURE.md"
    for module, _ in _imports(path):
        parts = module.split(".")
        if parts[0] != "ridgepoint" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        assert other in BASE | ALLOWED[package] | {package}, f"{package} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_torch_stays_below_its_line(path: Path) -> None:
    if _package_of(path) not in TORCH_FREE:
        return
    for module, top in _imports(path):
        assert not (top and module.split(".")[0] == "torch"), f"{path} imports torch at import time"


def test_importing_the_core_does_not_import_torch() -> None:
    core = [
        name
        for name in ("catalog", "cost", "sched", "plan", "sim", "cli.main")
        if (SRC / name.replace(".", "/")).exists() or (SRC / (name.replace(".", "/") + ".py")).exists()
    ]
    code = ";".join(
        [
            "import sys",
            "import ridgepoint",
            *[f"import ridgepoint.{name}" for name in core],
            "assert 'torch' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SRC.parent), "PATH": ""})
