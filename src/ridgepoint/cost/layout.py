"""How one instance of a model lies on chips: tensor, attention-data, expert and pipeline degrees, and where peers sit.

Chips of an instance = tp * dp_attention * pp. The feed-forward of a stage lies on all tp * dp_attention chips of the stage:
experts are spread over `ep` of them and each expert's width over the rest (`moe_tp`). Degrees may be arrays (one per plan).
`sram=True` says the weights stay resident in on-chip SRAM: bandwidth and capacity are then the SRAM's. The cache lies beside
them, or with `kv_in_sram=False` in the chip's main memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ridgepoint.cost.arrays import Num, all_true
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All degrees are 1 for one chip. `domain_chips` overrides the hardware's scale-up domain (a smaller node, say)."""

    tp: Num = 1
    dp_attention: Num = 1
    ep: Num = 1
    pp: Num = 1
    domain_chips: int | None = None
    sram: bool = False
    kv_in_sram: bool = True

    def __post_init__(self) -> None:
        for name in ("tp", "dp_attention", "ep", "pp"):
            degree = getattr(self, name)
            if not all_true(degree >= 1) or not all_true(degree % 1 == 0):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {degree!r}")
        if not all_true((self.tp * self.dp_attention) % self.ep == 0):
            raise ConfigError(
                f"ep {self.ep} does not divide the stage's {self.tp * self.dp_attention} chips (tp x dp_attention)",
                hint="choose ep among the divisors of tp x dp_attention",
            )

    @property
    def split_memory(self) -> bool:
        """Weights in SRAM and the cache in main memory: two capacities and two bandwidths."""
        return self.sram and not self.kv_in_sram

    @property
    def stage_chips(self) -> Num:
        return self.tp * self.dp_attention

    @property
    def chips(self) -> Num:
        return self.tp * self.dp_attention * self.pp

    @property
    def moe_tp(self) -> Num:
        return self.stage_chips // self.ep

    def describe(self) -> dict[str, Any]:
        return {
            "tp": self.tp,
            "dp_attention": self.dp_attention,
            "ep": self.ep,
            "pp": self.pp,
            "chips": self.chips,
            "sram": self.sram,
            "kv_in_sram": self.sram and self.kv_in_sram,
        }
