"""What a kernel with a choice can be told: the sizes it is compiled for and how it is spread over a GPU.

One frozen class per kind of kernel. A configuration says nothing of when it is good; `table` and `physics` do.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One product's launch. `kernel`: tokens (rows of the tile are tokens), weights (they are weight rows), or roles (tokens, by
    warps with a role each)."""

    kernel: str
    block_n: int  # weight rows, gate and up together
    block_k: int
    group: int  # blocks of rows that pass under every column before the next
    num_warps: int
    num_stages: int
    per_processor: int  # persistent programs on each multiprocessor
    flatten: bool = True  # loads of the next tile run under the end of this one (tokens only)

    def __post_init__(self) -> None:
        if self.kernel not in ("tokens", "weights", "roles"):
            raise ConfigError(f"tile kernel {self.kernel!r} is unknown; allowed: tokens, weights, roles")
        _check(self, self.block_n, self.block_k, self.num_warps)
        if min(self.group, self.num_stages, self.per_processor) < 1:
            raise ConfigError(f"{self}: group, stages and programs are at least 1")


@dataclass(frozen=True, kw_only=True)
class ExpertTiles:
    """`first` is gate and up, `second` is down. Rows of an expert start at multiples of `unit` (None: of `block_m`); below
    `block_m` it makes short blocks of the rest, or with roles one lower block, of as many units as there are of three."""

    block_m: int
    first: Tile
    second: Tile
    unit: int | None = None

    def __post_init__(self) -> None:
        _check(self, self.unit or self.block_m)
        if not self.by_roles:
            _check(self, self.block_m)
        elif self.first.kernel != self.second.kernel or self.unit is None or self.block_m != 3 * self.unit:
            raise ConfigError(f"{self}: with roles both products have blocks of three units")

    @property
    def by_roles(self) -> bool:
        return "roles" in (self.first.kernel, self.second.kernel)


@dataclass(frozen=True, kw_only=True)
class LinearTiles:
    block_m: int
    first: Tile

    def __post_init__(self) -> None:
        _check(self, self.block_m)


@dataclass(frozen=True)
class AttentionTile:
    """Rows (query, head), keys, warps and software pipeline depth; of a kernel that splits keys also its programs on each
    multiprocessor, and the keys of a split where the step does not decide it (see `triton_plan.Cut.parts`)."""

    rows: int
    keys: int
    warps: int
    stages: int
    per_sm: int = 1
    split_keys: int = 256
    early: bool = False  # the next keys are asked for before this tile's weights are known (`gluon_splits`)
    roles: bool = False  # some warps fetch, and two groups multiply in turn (`gluon_seesaw`, `gluon_tiles`)

    def __post_init__(self) -> None:
        _check(self, self.rows, self.keys, self.warps)
        if min(self.stages, self.per_sm) < 1 or self.split_keys < 1 or self.split_keys % 128:
            raise ConfigError(f"{self}: stages and programs are at least 1, splits multiples of 128 keys")


Config = ExpertTiles | LinearTiles | AttentionTile
CONFIGS: dict[str, type[ExpertTiles] | type[LinearTiles] | type[AttentionTile]] = {
    "experts": ExpertTiles,
    "linear": LinearTiles,
    "paged_decode": AttentionTile,
    "paged_prompt": AttentionTile,
    "mla_decode": AttentionTile,
    "mla_prompt": AttentionTile,
}


def has_roles(config: Config) -> bool:
    """Whether its kernel's warps have roles and wait for each other at barriers of their own."""
    return getattr(config, "roles", False) or getattr(config, "by_roles", False)


def _check(config: object, *powers: int) -> None:
    if any(not isinstance(value, int) or value < 1 or value & (value - 1) for value in powers):
        raise ConfigError(f"{config}: blocks and warps are powers of two")
