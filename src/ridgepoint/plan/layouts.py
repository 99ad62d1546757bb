"""Which layouts are worth pricing: every sensible (tp, dp_attention, ep, pp) of a model on a number of chips, as arrays.

A layout lies in the chips' main memory or, where their SRAM's capacity and speed are known, in SRAM: weights and cache, or the
weights alone with the cache in main memory. Sensible: degrees divide what they split (heads, experts; layers nearly), and tensor parallelism stays inside the scale-up
domain. Experts may spread beyond it, as on nodes of eight they must to be read by enough tokens: whether that or a pipeline
across the boundary pays, or a layout fits at all, is for `cost` to say; nothing here has a price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec, MoeSpec
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import usable_bytes, weight_bytes_per_chip
from ridgepoint.errors import PlanError

Floats = NDArray[np.float64]

MAX_TP = 16  # beyond it the pieces of a head's projections are too thin to be worth an all-reduce
MAX_SRAM_TP = 64  # ... unless SRAM makes every piece cheap to read: then more chips are the point
MAX_STAGE_CHIPS = 320  # DeepSeek's largest published decode unit


@dataclass(frozen=True, kw_only=True)
class Residence:
    """Which memory weights and cache lie in; `code` is its number in the planner's table."""

    code: int
    sram: bool
    kv_in_sram: bool
    text: str


MAIN = Residence(code=0, sram=False, kv_in_sram=True, text="")
IN_SRAM = Residence(code=1, sram=True, kv_in_sram=True, text="weights and KV in SRAM")
WEIGHTS_IN_SRAM = Residence(code=2, sram=True, kv_in_sram=False, text="weights in SRAM, KV in main memory")
RESIDENCES = (MAIN, IN_SRAM, WEIGHTS_IN_SRAM)


def residences(chip: Accelerator) -> tuple[Residence, ...]:
    """What a chip offers: main memory, SRAM, or weights in the one and the cache in the other. A chip whose memory *is* SRAM has
    no other; one whose SRAM's speed nobody has published offers main memory alone."""
    if chip.spec_sram_bytes is None or chip.spec_sram_bytes_per_s is None:
        return (MAIN,)
    return (IN_SRAM,) if chip.spec_memory_bytes in (None, chip.spec_sram_bytes) else RESIDENCES


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """Parallel degrees, one row per layout, all in one residence."""

    tp: Floats
    dp_attention: Floats
    ep: Floats
    pp: Floats
    residence: Residence = MAIN

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def chips(self) -> Floats:
        return self.tp * self.dp_attention * self.pp

    def pick(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Degrees:
        return replace(self, tp=self.tp[rows], dp_attention=self.dp_attention[rows], ep=self.ep[rows], pp=self.pp[rows])

    def layout(self, extra_axes: int = 0) -> Layout:
        """All rows as one array Layout, with trailing axes of length 1 to broadcast over batches."""
        shape = (-1,) + (1,) * extra_axes
        return Layout(
            tp=self.tp.reshape(shape),
            dp_attention=self.dp_attention.reshape(shape),
            ep=self.ep.reshape(shape),
            pp=self.pp.reshape(shape),
            sram=self.residence.sram,
            kv_in_sram=self.residence.kv_in_sram,
        )


def enumerate_layouts(spec: ModelSpec, chip: Accelerator, max_chips: int, residence: Residence = MAIN) -> Degrees:
    """Every sensible layout on at most `max_chips` chips of an instance."""
    most_tp = MAX_SRAM_TP if residence.sram else MAX_TP
    heads, experts = _heads(spec), _experts(spec)
    domain = chip.scaleup_domain_chips or 1
    stage_limit = min(max_chips, MAX_STAGE_CHIPS if experts else domain)
    rows: list[tuple[int, int, int, int]] = []
    for stage in _stage_sizes(stage_limit, domain, experts):
        for tp in _divisors(stage):
            if tp > min(most_tp, domain) or any(count % tp for count in heads):
                continue
            dp = stage // tp
            if dp > 1 and not experts:
                continue  # a dense model's data parallelism is more instances, not a layout
            for pp in _pipeline_depths(spec.num_layers, max_chips // stage):
                rows += [(tp, dp, ep, pp) for ep in _expert_degrees(stage, dp, experts)]
    if not rows:
        raise PlanError(f"no layout of this model on up to {max_chips} chips of {chip.id}", hint="allow more chips")
    table = np.array(sorted(set(rows)), dtype=np.float64)
    return Degrees(tp=table[:, 0], dp_attention=table[:, 1], ep=table[:, 2], pp=table[:, 3], residence=residence)


def _heads(spec: ModelSpec) -> set[int]:
    return {layer.mixer.num_heads for layer in spec.layers if layer.mixer is not None}


def _experts(spec: ModelSpec) -> int:
    """Greatest common divisor of the layers' expert counts; 0 for a dense model."""
    return math.gcd(*{layer.ffn.num_experts for layer in spec.layers if isinstance(layer.ffn, MoeSpec)} or {0})


def _divisors(value: int) -> list[int]:
    return [n for n in range(1, value + 1) if value % n == 0]


def _stage_sizes(limit: int, domain: int, experts: int) -> list[int]:
    """Powers of two, the whole domain and its halves, and sizes that give every chip the same number of experts."""
    sizes = {2**power for power in range(0, 16)} | {domain, domain // 2, domain // 4}
    if experts:
        sizes |= {n for n in range(1, limit + 1) if experts % n == 0}
    return sorted(n for n in sizes if 1 <= n <= limit)


def _pipeline_depths(num_layers: int, limit: int) -> list[int]:
    depths = [pp for pp in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if pp <= min(limit, num_layers)]
    return [
        pp for pp in depths if math.ceil(num_layers / pp) * pp <= 1.12 * num_layers
    ]  # the longest stage sets the pace


def _expert_degrees(stage: int, dp: int, experts: int) -> list[int]:
    if not experts:
        return [1]
    return sorted({ep for ep in (1, dp, stage) if experts % ep == 0})


def smallest_layout(spec: ModelSpec, chip: Accelerator, precision: Precision, *, weights_frac: float = 0.75) -> Layout:
    """Fewest chips whose memory holds the weights in `weights_frac` of it: tensor parallel in the domain, then pipelined."""
    domain = chip.scaleup_domain_chips or 1
    heads = math.gcd(*_heads(spec)) if _heads(spec) else 1
    for chips in (2**power for power in range(0, 12)):
        tp = math.gcd(min(chips, 1 << (domain.bit_length() - 1), MAX_TP), heads)
        layout = Layout(tp=tp, pp=chips // tp)
        if layout.pp > spec.num_layers:
            break
        if weight_bytes_per_chip(spec, precision, layout) <= weights_frac * usable_bytes(chip, layout):
            return layout
    raise PlanError(
        f"the weights do not fit on any sensible number of {chip.id} chips",
        hint="a narrower precision, or chips with more memory",
    )
