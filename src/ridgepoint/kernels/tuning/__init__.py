"""Which configuration a kernel runs with: read from tables by hardware, kind, shape and size. Decides; never measures.

The package ships a table per GPU it was reasoned about for (`tuned/`); `tuner` writes what it measured to `RIDGEPOINT_TUNED`
(default: the user's cache), which is preferred while it holds (see `table.stale`). Where no table has an answer the kernel's
own estimate serves. The choice is a function of its key alone: sizes fall into buckets that the tables make, so that no
number of tokens is compiled for, and none of them is asked of the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels.tuning.configs import AttentionTile, Config, ExpertTiles, LinearTiles, Tile
from ridgepoint.kernels.tuning.table import Choice, read_table, source_hash, stale, write_table

__all__ = [
    "AttentionTile", "Choice", "Config", "ExpertTiles", "LinearTiles", "Loaded", "Tile", "choose", "find", "forget",
    "hardware_name", "load_tables", "pinned", "read_table", "source_hash", "stale", "user_table", "write_table",
]  # fmt: skip

TABLES = Path(__file__).parents[1] / "tuned"
DEFAULT_HARDWARE = "NVIDIA H200"

_pinned: ContextVar[tuple[tuple[str, Config], ...]] = ContextVar("pinned", default=())


def choose(
    op: str,
    kind: str,
    size: float,
    shape: tuple[int, ...],
    device: torch.device,
    estimate: Callable[[], Config] | None = None,
) -> Any:
    """The configuration of `op` for operands of `kind` and `shape` at `size`; `estimate` makes one where no table has any."""
    for name, config in _pinned.get():
        if name == op:
            return config
    choice = find(op, kind, size, shape, hardware_name(device))
    if choice is not None:
        return choice.config
    if estimate is None:
        tables = sorted({c.table for c in load_tables(hardware_name(device)).choices if c.op == op})
        raise ConfigError(f"no configuration for {op} of {kind} at size {size}; tables: {', '.join(tables)}")
    return estimate()


@lru_cache(maxsize=4096)
def find(op: str, kind: str, size: float, shape: tuple[int, ...], hardware: str) -> Choice | None:
    """The entry of the tables that answers: one for this very shape before one for any, then the narrowest bucket."""
    fitting = [
        c for c in load_tables(hardware).choices
        if c.op == op and c.kind == kind and c.shape in (None, shape) and size <= c.up_to
    ]  # fmt: skip
    return min(fitting, key=lambda c: (c.shape is None, c.up_to), default=None)


@contextmanager
def pinned(op: str, config: Config) -> Iterator[None]:
    """`op` runs with `config` inside the block, in this thread."""
    token = _pinned.set(((op, config), *_pinned.get()))
    try:
        yield
    finally:
        _pinned.reset(token)


@dataclass(frozen=True)
class Loaded:
    """What the tables say, and which of it was measured here. `note`: why the measured table was passed over, in one line."""

    choices: tuple[Choice, ...]
    measured: tuple[Choice, ...] = ()
    note: str | None = None


@cache
def load_tables(hardware: str) -> Loaded:
    """What was measured here first, then what the package ships; of equal keys the first wins. A measured table that cannot be
    read or no longer holds is passed over."""
    measured, shipped = user_table(hardware), shipped_table(hardware)
    found: dict[tuple[Any, ...], Choice] = {}
    why = None
    if measured.is_file() and measured != shipped:
        try:
            why = stale(measured, hardware)
            found = {choice.key: choice for choice in (read_table(measured) if why is None else [])}
        except ConfigError as error:
            why = error.message
    here = tuple(found.values())
    for choice in read_table(shipped):
        found.setdefault(choice.key, choice)
    note = None if why is None else f"tuned table {measured} is not used and is made again: {why}"
    return Loaded(tuple(found.values()), here, note)


def forget() -> None:
    """Read the tables again at the next choice."""
    find.cache_clear()
    load_tables.cache_clear()


@cache
def hardware_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else DEFAULT_HARDWARE


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
