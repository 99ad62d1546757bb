"""At the edge of the scale-up domain: expert parallelism across it against pipelining across it, and what a pipeline does to KV.

Both questions are answered by pricing both layouts at the same batch. EP sends every token K times over the slow wires in
every layer; PP sends it once per boundary. PP divides the weights per chip by its stages, but keeps as many more sequences
in flight, so KV per chip does not move.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import kv_bytes_per_chip, weight_bytes_per_chip
from ridgepoint.plan.layouts import _experts
from ridgepoint.plan.pools import Pool


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Two domains' worth of chips at one batch. Seconds per step, and of those on links."""

    domain_chips: int
    batch: float
    ep_chips: int
    ep_step_s: float
    ep_link_s: float
    pp_step_s: float
    pp_link_s: float

    @property
    def winner(self) -> str:
        return "PP" if self.pp_step_s < self.ep_step_s else "EP"


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """`pp` stages with each stage's micro-batch as before: weights, KV and sequences in flight."""

    pp: int
    sequences: float
    weight_bytes_per_chip: float
    kv_bytes_per_chip: float


def rack_boundary(spec: ModelSpec, pool: Pool, *, batch: float, context: float) -> Crossing | None:
    """EP over two domains against EP inside each and PP between; None for a dense model or a chip without a second domain."""
    experts, domain = _experts(spec), pool.chip.scaleup_domain_chips or 1
    inside = max((n for n in range(1, domain + 1) if experts and experts % n == 0), default=1)
    if not experts or inside < 2 or experts % (2 * inside) or pool.chip.spec_scaleout_bytes_per_s is None:
        return None
    across = Layout(dp_attention=2 * inside, ep=2 * inside, domain_chips=inside)
    piped = Layout(dp_attention=inside, ep=inside, pp=2, domain_chips=inside)
    work = StepBatch.decode(batch, context)
    from ridgepoint.cost.step import step_cost

    ep, pp = (step_cost(spec, pool.chip, layout, pool.precision, work, pool.calibration) for layout in (across, piped))
    return Crossing(
        domain_chips=inside, batch=batch, ep_chips=2 * inside, ep_step_s=float(ep.estimate_s), ep_link_s=float(ep.roof_s["links"]),
        pp_step_s=float(pp.estimate_s), pp_link_s=float(pp.roof_s["links"]),
    )  # fmt: skip


def pipeline_kv(
    spec: ModelSpec, pool: Pool, layout: Layout, *, stage_batch: float, context: float
) -> tuple[StageRow, ...]:
    """Weights and KV per chip for 1, 2, 4 and 8 stages, every stage kept busy with `stage_batch` sequences."""
    rows = []
    for pp in (1, 2, 4, 8):
        if pp > spec.num_layers:
            break
        staged = Layout(tp=layout.tp, dp_attention=layout.dp_attention, ep=layout.ep, pp=pp)
        sequences = stage_batch * pp
        rows.append(
            StageRow(
                pp=pp, sequences=sequences, weight_bytes_per_chip=float(weight_bytes_per_chip(spec, pool.precision, staged)),
                kv_bytes_per_chip=float(kv_bytes_per_chip(spec, pool.precision, staged, sequences, context)),
            )
        )  # fmt: skip
    return tuple(rows)
