"""Which implementation of an op runs, and why. Decides by device, by what is forced and by what a caller puts in an op's
place; knows no op by name.

An op's folder holds `reference.py` and one module per path. A path that is asked for and absent is an error, never a
silent fallback: only the order below is fallen through, and `explain` prints what was taken and the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native

# Paths tried in turn. `cpu.py` is written in torch ops that run on any device, so it also stands in on accelerators.
ORDER: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cpu", "reference")}
PATHS = ("reference", "cpu", "triton")

_forced: str | None = os.environ.get("RIDGEPOINT_KERNELS") or None
_chosen: dict[tuple[str, str], ModuleType] = {}
_substitutes: ContextVar[Mapping[str, Any]] = ContextVar("substitutes", default=MappingProxyType({}))


def implementation(op: str, tensor: torch.Tensor) -> Any:
    """What computes `op` for tensors living where `tensor` lives: a module, or a substitute with its functions."""
    substitute = _substitutes.get().get(op)
    return _module(op, tensor) if substitute is None else substitute


def _module(op: str, tensor: torch.Tensor) -> ModuleType:
    key = (op, tensor.device.type)
    module = _chosen.get(key)
    if module is None:
        module = _chosen[key] = importlib.import_module(_path(op, key[1])[0])
    return module


def explain(op: str, device_type: str) -> str:
    """One line: the path `op` takes on `device_type`, and the reason."""
    module, reason = _path(op, device_type)
    return f"{op}: {module.rsplit('.', 1)[1]} ({reason})"


def reads_on_host(op: str, tensor: torch.Tensor) -> bool:
    """Whether the path reads numbers of the step on the host (its module says `READS_ON_HOST`, and every reference does),
    which makes the host wait for an accelerator and cannot be captured. Asked of activations and weights of `tensor`'s type."""
    module = leaves(op, tensor) or _module(op, tensor)
    return module.__name__.endswith(".reference") or getattr(module, "READS_ON_HOST", False)


def leaves(op: str, tensor: torch.Tensor) -> ModuleType | None:
    """The module to which the path hands tensors of this type: `OTHER_TYPES` of one that serves bf16 alone."""
    if tensor.dtype == torch.bfloat16:
        return None
    return getattr(_module(op, tensor), "OTHER_TYPES", None)


def ops() -> list[str]:
    """Every operator there is: the folders beside this file that define one."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/reference.py"))


def explain_ops(device_type: str) -> list[str]:
    """`explain` of every operator, with what its path does natively on a CPU and in Triton on a GPU."""
    packed_only = {"linear", "moe_experts"}
    lines = []
    for op in ops():
        line = explain(op, device_type)
        if device_type == "cpu" and _forced is None:
            if not native.available():
                line += f"; in torch: the native library is absent ({native.load_error()})"
            elif not (Path(__file__).parent / op / "native.py").exists():
                line += "; in torch: no native operator"
            else:
                when = "for packed weights" if op in packed_only else "for inference in bf16 or f32"
                line += f"; native {native.isa()} {when}, else torch"
        elif device_type == "cuda" and _forced is None:
            line += "; " + _on_cuda(op)
        lines.append(line)
    return lines


def _on_cuda(op: str) -> str:
    if not _is_there(f"ridgepoint.kernels.{op}.triton"):
        return "in torch: no Triton kernel"
    if not triton_installed():
        return "in torch: Triton is not installed"
    if op == "linear":
        return "Triton for packed weights, torch's BLAS for dense ones"
    return "Triton for inference in bf16, else torch"


def triton_installed() -> bool:
    spec = importlib.util.find_spec("triton")
    return spec is not None and spec.origin is not None


@contextmanager
def forced(path: str | None) -> Iterator[None]:
    """Run every op by one path inside the block: the slow twin of anything is `forced("reference")`."""
    global _forced
    before = _forced
    _forced = path
    _chosen.clear()
    try:
        yield
    finally:
        _forced = before
        _chosen.clear()


@contextmanager
def substituted(implementations: Mapping[str, Any]) -> Iterator[None]:
    """Compute the named ops by these objects inside the block, in this thread alone. Each has the functions of its op's
    modules. For a caller that knows more of its tensors than an op may: that all of a training step's want gradients."""
    before = _substitutes.set(implementations)
    try:
        yield
    finally:
        _substitutes.reset(before)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _path(op: str, device_type: str) -> tuple[str, str]:
    package = f"ridgepoint.kernels.{op}"
    if _forced is not None:
        if _forced not in PATHS:
            raise ConfigError(
                f"kernel path {_forced!r} is unknown; allowed: {', '.join(PATHS)}", hint="unset RIDGEPOINT_KERNELS"
            )
        if not _is_there(f"{package}.{_forced}"):
            raise ConfigError(f"op {op!r} has no path {_forced!r}", hint="unset RIDGEPOINT_KERNELS")
        return f"{package}.{_forced}", "forced"
    for path in ORDER.get(device_type, ("cpu", "reference")):
        if _is_there(f"{package}.{path}") and (path != "triton" or triton_installed()):
            return f"{package}.{path}", f"first path present for {device_type}"
    raise ConfigError(f"op {op!r} has no implementation for device {device_type!r}")
