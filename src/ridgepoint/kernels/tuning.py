"""Which tile a product uses: read from tables by hardware, format and rows per matrix. Decides; never measures at run time.

A table is a TOML file. The package ships one per GPU it was reasoned about for (`tuned/`); `benchmarks/tune_kernels.py` writes
one to `RIDGEPOINT_TUNED` (default: the user's cache), which is preferred where it was made by the same Triton from the same kernel
sources on the same GPU. With no table for a GPU the H200's serves: the choice is deterministic, only perhaps not the best.
The rows of an experts product are those the average expert has, a number the host knows without asking the device.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ridgepoint.errors import ConfigError

TABLES = Path(__file__).parent / "tuned"
DEFAULT_HARDWARE = "NVIDIA H200"
PRODUCTS = ("experts", "linear")
_SOURCES = ("gemm/*.py", "moe_experts/*.py", "linear/triton.py", "device_weight.py")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One product's launch. `kernel`: tokens (rows of the tile are tokens) or weights (they are weight rows)."""

    kernel: str
    block_n: int  # weight rows, gate and up together
    block_k: int
    group: int  # blocks of rows that pass under every column before the next
    num_warps: int
    num_stages: int
    per_processor: int  # persistent programs on each multiprocessor
    flatten: bool = True  # loads of the next tile run under the end of this one (tokens only)

    def __post_init__(self) -> None:
        if self.kernel not in ("tokens", "weights"):
            raise ConfigError(f"tile kernel {self.kernel!r} is unknown; allowed: tokens, weights")
        powers = (self.block_n, self.block_k, self.num_warps)
        if any(value < 1 or value & (value - 1) for value in powers) or min(self.group, self.num_stages) < 1:
            raise ConfigError(f"{self}: blocks and warps are powers of two, group and stages at least 1")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tiles for up to `rows_up_to` rows per matrix. `first` is gate and up of experts, or a linear; `second` is down."""

    product: str
    kind: str
    rows_up_to: float
    block_m: int
    first: Tile
    second: Tile | None = None
    unit: int | None = None  # experts' rows start at multiples of it; below block_m it makes short blocks of the rest
    shape: tuple[int, int] | None = None  # (inputs, outputs) of `first` it was measured for; None: any
    figure: str = ""  # where it comes from: "estimate_..." or "measure_..."
    table: str = field(default="", compare=False)


def choose(product: str, kind: str, rows: float, shape: tuple[int, int], device: torch.device) -> Choice:
    """The tiles of `product` for weights of `kind` with `rows` rows per matrix, `shape` being (inputs, outputs)."""
    return _choose(product, kind, rows, shape, hardware_name(device))


@cache
def _choose(product: str, kind: str, rows: float, shape: tuple[int, int], hardware: str) -> Choice:
    choices = [c for c in load_tables(hardware) if c.product == product and c.kind == kind and c.shape in (None, shape)]
    fitting = [c for c in choices if rows <= c.rows_up_to]
    if not fitting:
        raise ConfigError(
            f"no tile for {product} of {kind} with {rows} rows; tables: {', '.join(sorted({c.table for c in choices}))}"
        )
    return min(fitting, key=lambda c: (c.shape is None, c.rows_up_to))


@cache
def hardware_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else DEFAULT_HARDWARE


@cache
def load_tables(hardware: str) -> tuple[Choice, ...]:
    """What was measured here first, then what the package ships; of equal keys the first wins."""
    found: dict[tuple[Any, ...], Choice] = {}
    for path in (user_table(hardware), shipped_table(hardware)):
        if path.is_file() and not (path != shipped_table(hardware) and stale(path)):
            for choice in read_table(path):
                found.setdefault((choice.product, choice.kind, choice.rows_up_to, choice.shape), choice)
    return tuple(found.values())


def forget() -> None:
    """Read the tables again at the next choice."""
    _choose.cache_clear()
    load_tables.cache_clear()


def slug(hardware: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in hardware.lower()).split())


def shipped_table(hardware: str) -> Path:
    path = TABLES / f"{slug(hardware)}.toml"
    return path if path.is_file() else TABLES / f"{slug(DEFAULT_HARDWARE)}.toml"


def user_table(hardware: str) -> Path:
    named = os.environ.get("RIDGEPOINT_TUNED")
    if named:
        return Path(named)
    cache_home = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache_home) if cache_home else Path.home() / ".cache"
    return base / "ridgepoint" / "tuned" / f"{slug(hardware)}.toml"


def stale(path: Path) -> str | None:
    """Why a measured table does not count, or None."""
    import triton

    table = tomllib.loads(path.read_text())
    if table.get("triton") != triton.__version__:
        return f"made by triton {table.get('triton')}, this is {triton.__version__}"
    if table.get("source") != source_hash():
        return "the kernels have changed since"
    return None


@cache
def source_hash() -> str:
    """Names the kernels a measurement is about."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_table(path: Path) -> list[Choice]:
    table = tomllib.loads(path.read_text())
    unknown = set(table) - {"hardware", "triton", "source", "choice", "tile"}
    if unknown:
        raise ConfigError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    tiles = {name: _parsed(Tile, values, path) for name, values in table.get("tile", {}).items()}
    return [_choice(values, tiles, path) for values in table.get("choice", [])]


def _choice(values: dict[str, Any], tiles: dict[str, Tile], path: Path) -> Choice:
    values = dict(values)
    for name in ("first", "second"):
        if name in values:
            if values[name] not in tiles:
                raise ConfigError(f"{path}: tile {values[name]!r} is not defined; allowed: {', '.join(sorted(tiles))}")
            values[name] = tiles[values[name]]
    if "shape" in values:
        values["shape"] = tuple(values["shape"])
    choice: Choice = _parsed(Choice, values, path)
    if choice.product not in PRODUCTS or (choice.product == "experts") != (choice.second is not None):
        raise ConfigError(
            f"{path}: {choice.product!r} with second={choice.second}; allowed: experts with one, linear without"
        )
    return replace(choice, table=path.name)


def _parsed(kind: type, values: dict[str, Any], path: Path) -> Any:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ConfigError(f"{path}: unknown keys of a {kind.__name__.lower()}: {', '.join(sorted(unknown))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_table(path: Path, hardware: str, choices: list[Choice]) -> None:
    """The choices as a table that `read_table` reads back, with what they hold for."""
    import triton

    tiles: dict[Tile, str] = {}
    for choice in choices:
        for tile in (choice.first, choice.second):
            if tile is not None:
                tiles.setdefault(tile, f"t{len(tiles)}")
    lines = [f'hardware = "{hardware}"', f'triton = "{triton.__version__}"', f'source = "{source_hash()}"', ""]
    for tile, name in tiles.items():
        lines += [f"[tile.{name}]", *(f"{f.name} = {_toml(getattr(tile, f.name))}" for f in fields(Tile)), ""]
    for choice in choices:
        values = {
            "product": choice.product,
            "kind": choice.kind,
            "rows_up_to": choice.rows_up_to,
            "block_m": choice.block_m,
        }
        values |= {"first": tiles[choice.first], "figure": choice.figure}
        values |= {"second": tiles[choice.second]} if choice.second else {}
        values |= {"unit": choice.unit} if choice.unit else {}
        values |= {"shape": list(choice.shape)} if choice.shape else {}
        lines += ["[[choice]]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text("\n".join(lines))
    aside.replace(path)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
