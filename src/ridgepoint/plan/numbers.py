"""The numbers every AI programmer should know, computed from the catalogue: each row a figure, its ends and its source.

Decides only what belongs in the table. Nothing is typed in here: energies, latencies, chips and models are facts of
`catalog`, and the floors are the physics of `cost` at peak, which no software reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.physics import constants
from ridgepoint.catalog.tiers import hbm_tier, lower_tiers
from ridgepoint.cost.memory import kv_bytes_per_token
from ridgepoint.cost.shape import shape_of
from ridgepoint.plan.named import NamedModel


@dataclass(frozen=True, kw_only=True)
class Number:
    """`low` == `high` is a single published fact. `provenance` is spec, estimate or measure; `how` is source or formula."""

    section: str
    what: str
    low: float
    high: float
    unit: str
    provenance: str
    how: str


def numbers(
    chips: Sequence[Accelerator], models: Sequence[NamedModel], floor_chips: Sequence[Accelerator] | None = None
) -> list[Number]:
    """`floor_chips`: which chips the per-model floors are given for (default: all)."""
    rows = [
        *_energy(),
        *_energy_ratios(),
        *_latency(),
        *_ridges(chips),
        *_links(chips),
        *_drains(chips),
        *_models(models),
    ]
    for model in models:
        for chip in chips if floor_chips is None else floor_chips:
            rows += _floors(chip, model)
    return rows


def _energy() -> Iterator[Number]:
    for item in constants().values():
        if item.unit != "s":
            yield Number(section="energy", what=item.what, low=item.low * 1e-12, high=item.high * 1e-12,
                         unit=item.unit.replace("pJ", "J"), provenance="spec", how=item.source)  # fmt: skip


def _energy_ratios() -> Iterator[Number]:
    facts = constants()
    flop, hbm, net = facts["fp16-multiply-add-45nm"], facts["hbm"], facts["network"]
    yield Number(section="energy", what="FLOPs one byte from HBM is worth", low=hbm.low / flop.high, high=hbm.high / flop.low,
                 unit="FLOP/B", provenance="estimate", how="HBM pJ/B over fp16 pJ/FLOP (45 nm logic; newer logic makes it larger)")  # fmt: skip
    yield Number(section="energy", what="HBM bytes one byte over the network is worth", low=net.low / hbm.high, high=net.high / hbm.low,
                 unit="B/B", provenance="estimate", how="network pJ/B over HBM pJ/B")  # fmt: skip


def _latency() -> Iterator[Number]:
    for item in constants().values():
        if item.unit == "s":
            yield Number(
                section="latency",
                what=item.what,
                low=item.low,
                high=item.high,
                unit="s",
                provenance="spec",
                how=item.source,
            )


def _ridges(chips: Sequence[Accelerator]) -> Iterator[Number]:
    for chip in chips:
        if chip.spec_memory_bytes_per_s is None or not chip.spec_flops_per_s:
            continue
        for kind in ("bf16", "fp8", "fp4"):
            if kind not in chip.spec_flops_per_s:
                continue
            ridge = chip.spec_flops_per_s[kind] / chip.spec_memory_bytes_per_s
            yield Number(section="ridge points", what=f"{chip.id} {kind}", low=ridge, high=ridge, unit="FLOP/B", provenance="spec",
                         how=f"{chip.spec_flops_per_s[kind]:.4g} FLOP/s over {chip.spec_memory_bytes_per_s:.4g} B/s")  # fmt: skip


def _links(chips: Sequence[Accelerator]) -> Iterator[Number]:
    for chip in chips:
        inside, outside = chip.spec_scaleup_bytes_per_s, chip.spec_scaleout_bytes_per_s
        if inside and outside and (chip.scaleup_domain_chips or 1) > 1:
            yield Number(section="links", what=f"{chip.id}: scale-up over scale-out", low=inside / outside, high=inside / outside, unit="x",
                         provenance="spec", how=f"{inside:.3g} B/s inside {chip.scaleup_domain_chips} chips, {outside:.3g} B/s beyond")  # fmt: skip


def _drains(chips: Sequence[Accelerator]) -> Iterator[Number]:
    tiers = [
        hbm_tier(chip) for chip in chips if chip.usd_per_hour_low and chip.usd_per_hour_high and chip.spec_memory_bytes
    ]
    for tier in [*tiers, *lower_tiers()]:
        yield Number(section="memory tiers", what=f"{tier.name}: time to read it all", low=tier.drain_s, high=tier.drain_s, unit="s",
                     provenance="spec", how=f"{tier.capacity_bytes:.3g} B at {tier.read_bytes_per_s:.3g} B/s")  # fmt: skip
        yield Number(section="memory tiers", what=f"{tier.name}: keeping 1 GB for an hour", low=tier.usd_per_byte_hour_low * 1e9,
                     high=tier.usd_per_byte_hour_high * 1e9, unit="USD", provenance="spec", how=tier.source)  # fmt: skip


def _models(models: Sequence[NamedModel]) -> Iterator[Number]:
    for model in models:
        shape = shape_of(model.spec)
        kv = kv_bytes_per_token(model.spec, "bf16")
        yield Number(section="models", what=f"{model.name}: active parameters", low=shape.active_params, high=shape.active_params, unit="params",
                     provenance="spec", how=model.source)  # fmt: skip
        yield Number(section="models", what=f"{model.name}: total over active", low=shape.sparsity, high=shape.sparsity, unit="x",
                     provenance="spec", how="N_total / N_active: multiplies the ridge batch")  # fmt: skip
        yield Number(section="models", what=f"{model.name}: KV bytes per token (bf16)", low=kv, high=kv, unit="B", provenance="spec",
                     how="the part that grows with context, all layers")  # fmt: skip


def _floors(chip: Accelerator, model: NamedModel) -> Iterator[Number]:
    """Compute floor of any token: 2 N_active FLOPs at peak fp8 (or the widest type the chip has), at the catalogue's rents."""
    shape = shape_of(model.spec)
    if not chip.spec_flops_per_s or not chip.usd_per_hour_low or not chip.usd_per_hour_high:
        return
    kind = chip.compute_type("fp8")
    seconds = 2.0 * shape.active_params / chip.flops_per_s("fp8")
    yield Number(section="floors", what=f"{model.name} on {chip.id}: a million tokens, compute alone", low=seconds * 1e6 * chip.usd_per_hour_low / 3600,
                 high=seconds * 1e6 * chip.usd_per_hour_high / 3600, unit="USD", provenance="spec",
                 how=f"2 N_active at peak {kind}, {chip.usd_per_hour_low:g}-{chip.usd_per_hour_high:g} USD/h")  # fmt: skip
    if chip.spec_memory_bytes_per_s:
        batch = chip.flops_per_s("fp8") / chip.spec_memory_bytes_per_s / 2 * shape.sparsity
        yield Number(section="floors", what=f"{model.name} on {chip.id}: ridge batch B* (fp8 weights)", low=batch, high=batch, unit="tokens",
                     provenance="spec", how="(FLOP/s / B/s) x 1 byte / 2 x N_total / N_active")  # fmt: skip
