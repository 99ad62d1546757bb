"""Tables of configurations as TOML files: read, checked, written. Knows what a table holds for, not where it lies.

A measured table names the GPU, the Triton, the package and the kernel sources it was made with; `stale` tells when one of
them has changed. Nothing of a file is executed, and one that makes no sense is refused whole.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ridgepoint import __version__
from ridgepoint.errors import ConfigError
from ridgepoint.kernels.tuning.configs import CONFIGS, Config, Tile

_KERNELS = Path(__file__).parents[1]
_SOURCES = (
    "gemm/*.py",
    "*/triton*.py",
    "*/gluon*.py",
    "moe_experts/*.py",
    "tuning/configs.py",
    "device_weight.py",
    "triton_call.py",
)
_HEAD = ("hardware", "triton", "ridgepoint", "source")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The configuration of `op` on operands of `kind` for sizes up to `up_to`: rows per matrix of products, sequences of a
    step that decodes, tokens of one that does not."""

    op: str
    kind: str
    up_to: float
    config: Config
    shape: tuple[int, ...] | None = None  # of the operands it was measured with; None: any
    figure: str = ""  # where it comes from: "estimate_..." or "measure_..."
    table: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What a table has one choice for."""
        return self.op, self.kind, self.up_to, self.shape


def read_table(path: Path) -> list[Choice]:
    """Raises `ConfigError` for anything that is not a table of choices."""
    table = _parsed_file(path)
    unknown = set(table) - {*_HEAD, "choice", "tile"}
    if unknown:
        raise ConfigError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    tiles = {name: _made(Tile, values, path) for name, values in table.get("tile", {}).items()}
    return [_choice(values, tiles, path) for values in table.get("choice", [])]


def stale(path: Path, hardware: str) -> str | None:
    """Why a measured table does not count here, or None."""
    made_with = {name: _parsed_file(path).get(name) for name in _HEAD}
    for name, here in _head(hardware).items():
        if made_with[name] != here:
            return (
                "the kernels have changed since" if name == "source"
                else f"made with {name} {made_with[name]}, this is {here}"
            )  # fmt: skip
    return None


def write_table(path: Path, hardware: str, choices: list[Choice]) -> None:
    """The choices as a table that `read_table` reads back, with what they hold for. A reader finds the old file or the new."""
    tiles: dict[Tile, str] = {}
    body: list[str] = []
    for choice in choices:
        values: dict[str, Any] = {"op": choice.op, "kind": choice.kind, "up_to": choice.up_to, "figure": choice.figure}
        if choice.shape is not None:
            values["shape"] = list(choice.shape)
        for part in fields(choice.config):
            value = getattr(choice.config, part.name)
            if value is not None:
                values[part.name] = tiles.setdefault(value, f"t{len(tiles)}") if isinstance(value, Tile) else value
        body += ["[[choice]]", *(f"{name} = {_toml(value)}" for name, value in values.items()), ""]
    lines = [*(f"{name} = {_toml(value)}" for name, value in _head(hardware).items()), ""]
    for tile, name in tiles.items():
        lines += [f"[tile.{name}]", *(f"{f.name} = {_toml(getattr(tile, f.name))}" for f in fields(Tile)), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text("\n".join([*lines, *body]))
    aside.replace(path)


def _head(hardware: str) -> dict[str, str]:
    import triton

    return {"hardware": hardware, "triton": triton.__version__, "ridgepoint": __version__, "source": source_hash()}


@cache
def source_hash() -> str:
    """Names the kernels a measurement is about."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _SOURCES for path in _KERNELS.glob(pattern)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _parsed_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _choice(values: Any, tiles: dict[str, Tile], path: Path) -> Choice:
    if not isinstance(values, dict) or values.get("op") not in CONFIGS:
        op = values.get("op") if isinstance(values, dict) else values
        raise ConfigError(f"{path}: op {op!r} is unknown; allowed: {', '.join(CONFIGS)}")
    own = {f.name for f in fields(Choice)} - {"config", "table"}
    about = {name: value for name, value in values.items() if name in own}
    if "shape" in about:
        about["shape"] = tuple(about["shape"])
    kind = CONFIGS[values["op"]]
    told = {name: value for name, value in values.items() if name not in own}
    for name in ("first", "second"):
        if name in told:
            if told[name] not in tiles:
                raise ConfigError(f"{path}: tile {told[name]!r} is not defined; allowed: {', '.join(sorted(tiles))}")
            told[name] = tiles[told[name]]
    choice: Choice = _made(Choice, about | {"config": _made(kind, told, path)}, path)
    return replace(choice, table=path.name)


def _made(kind: type, values: Any, path: Path) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a {kind.__name__} is a table, got {values!r}")
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ConfigError(f"{path}: unknown keys of a {kind.__name__}: {', '.join(sorted(unknown))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
