"""Which layouts are worth pricing: every sensible (tp, dp_attention, ep, pp) of a model on a number of chips, as arrays.

Sensible: degrees divide what they split (heads, experts, layers), tensor parallelism and expert parallelism stay inside the
scale-up domain unless one layer kind cannot fit there, and pipeline stages cross it. Whether a layout fits or pays is for
`cost` to say; nothing here has a price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import GqaSpec, MlaSpec, ModelSpec, MoeSpec
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import usable_bytes, weight_bytes_per_chip
from ridgepoint.errors import PlanError

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """Parallel degrees, one row per layout; the same length everywhere."""

    tp: Ints
    dp_attention: Ints
    ep: Ints
    pp: Ints

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def chips(self) -> Ints:
        return self.tp * self.dp_attention * self.pp

    def layout(self, index: int) -> Layout:
        """One row as a scalar Layout."""
        return Layout(tp=int(self.tp[index]), dp_attention=int(self.dp_attention[index]), ep=int(self.ep[index]), pp=int(self.pp[index]))

    def pick(self, rows: Ints | NDArray[np.bool_]) -> Degrees:
        return Degrees(tp=self.tp[rows], dp_attention=self.dp_attention[rows], ep=self.ep[rows], pp=self.pp[rows])


def smallest_layout(spec: ModelSpec, chip: Accelerator, precision: Precision, *, weights_frac: float = 0.75) -> Layout:
    """Fewest chips whose memory holds the weights in `weights_frac` of it: tensor parallel in the domain, then pipelined."""
    for chips in (2**power for power in range(0, 12)):
        domain = chip.scaleup_domain_chips or 1
        tp = min(chips, _largest_power_of_two(domain))
        layout = Layout(tp=tp, pp=chips // tp)
        if layout.pp > spec.num_layers:
            break
        if weight_bytes_per_chip(spec, precision, layout) <= weights_frac * usable_bytes(chip, layout):
            return layout
    raise PlanError(
        f"the weights do not fit on any sensible number of {chip.id} chips",
        hint="a narrower precision, or chips with more memory",
    )


def _largest_power_of_two(value: int) -> int:
    return 1 << (max(1, value).bit_length() - 1)
