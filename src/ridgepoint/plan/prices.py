"""Invert an API price list: what must be true of a model for its vendor to ask these prices?

Within one vendor the margin and the fleet cancel from every ratio, so ratios are read first (output over input, the
long-context step, one hour of cache against five minutes) and absolute figures only through stated assumptions about rent,
utilisation and margin. A price is not a cost: each inference carries its argument, its assumptions and an interval, and
arguments that only limit from above say so. Knows nothing of any particular vendor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.tiers import Tier
from ridgepoint.errors import ConfigError
from ridgepoint.plan.assume import Assumption, Inference
from ridgepoint.plan.price_arguments import (
    argue_active_params,
    argue_attention_from_input_step,
    argue_balance,
    argue_bytes_moved,
    argue_hit_saving,
    argue_kv_from_crossover,
    argue_kv_from_output_step,
    argue_margin,
    argue_storage,
)  # fmt: skip
from ridgepoint.plan.pricelist import ListPrice


@dataclass(frozen=True, kw_only=True)
class PriceInferences:
    """What one model's prices say. `disagreements` names pairs of arguments whose intervals do not overlap."""

    price: ListPrice
    inferences: tuple[Inference, ...]
    not_inferred: tuple[str, ...]
    disagreements: tuple[str, ...]


def defaults(chips: Sequence[Accelerator]) -> dict[str, Assumption]:
    """The assumption table; hardware ranges come from `chips`, the rest is argued in its `why`."""
    if not chips:
        raise ConfigError("price inference needs at least one accelerator to reason about")
    flops = [chip.flops_per_s("fp8") for chip in chips]
    bandwidth = [chip.need("spec_memory_bytes_per_s", "price inference") for chip in chips]
    rents: list[float] = []
    for chip, peak in zip(chips, flops, strict=True):
        chip.need("usd_per_hour_low", "price inference")
        rents += [float(x or 0) / 3600 / peak for x in (chip.usd_per_hour_low, chip.usd_per_hour_high)]
    names = ", ".join(chip.id for chip in chips)
    ridges = [f / b for f, b in zip(flops, bandwidth, strict=True)]
    table = [
        Assumption(name="usd_per_flop", low=min(rents), high=max(rents), unit="USD/FLOP",
                   why=f"rent per hour over peak fp8 FLOP/s of {names} (catalogue, low and high rent)"),
        Assumption(name="ridge", low=min(ridges), high=max(ridges), unit="FLOP/B",
                   why=f"peak fp8 FLOP/s over memory bytes/s of {names} (catalogue)"),
        Assumption(name="margin", low=1.5, high=6.5, unit="price/cost",
                   why="from a host of open weights near cost to the 6.45 of DeepSeek's published day (562,027 / 87,072 USD)"),
        Assumption(name="load_frac", low=0.35, high=0.85, unit="fraction",
                   why="chips are paid day and night; DeepSeek's day used 226.75 of 278 peak nodes (0.82), others less"),
        Assumption(name="prefill_flops_frac", low=0.3, high=0.6, unit="of peak",
                   why="measured prefill on large MoE models reaches about a third to a half of peak FLOP/s"),
        Assumption(name="decode_flops_frac", low=0.4, high=0.75, unit="of peak", why="matrix kernels at large batch, achieved over peak"),
        Assumption(name="decode_bytes_frac", low=0.55, high=0.9, unit="of peak", why="achieved over peak memory bandwidth in decode"),
        Assumption(name="phase_margin_ratio", low=0.7, high=1.4, unit="ratio",
                   why="margin on output over margin on input within one vendor: near one, not exactly"),
        Assumption(name="crossover_over_threshold", low=0.67, high=1.5, unit="ratio",
                   why="a vendor that prices honestly steps the price about where cost starts to rise"),
        Assumption(name="long_context_over_threshold", low=1.1, high=2.0, unit="ratio",
                   why="typical context of requests above the threshold"),
        Assumption(name="short_context_over_threshold", low=0.03, high=0.3, unit="ratio",
                   why="typical context of requests below the threshold"),
        Assumption(name="tier_overhead", low=1.0, high=2.0, unit="ratio", why="replicas, fragmentation and free space of stored KV"),
    ]  # fmt: skip
    return {item.name: item for item in table}


def infer_from_price(
    price: ListPrice,
    table: dict[str, Assumption],
    tiers: Sequence[Tier],
    *,
    active_params: Assumption | None = None,
) -> PriceInferences:
    """Every inference the price list allows. With `active_params` stated, the arguments that need it use it."""
    results = [
        argue_active_params(price, table) if active_params is None else argue_margin(price, table, active_params)
    ]
    missing: list[str] = []
    results += argue_balance(price, table)
    results.append(argue_bytes_moved(price, table, active_params))
    if price.long_threshold_tokens and price.long_output_usd_per_mtok:
        results.append(argue_kv_from_crossover(price, table, active_params))
        if price.long_output_usd_per_mtok > price.output_usd_per_mtok:
            results.append(argue_kv_from_output_step(price, table))
    else:
        missing.append("KV bytes per token from the crossover: no long-context output price")
    attention = argue_attention_from_input_step(price, table, active_params)
    if attention is not None:
        results.append(attention)
    if price.cached_input_usd_per_mtok:
        results.append(argue_hit_saving(price, table))
    else:
        missing.append("cache-hit cost share: no cached-input price")
    storage = argue_storage(price, table, tiers)
    if storage:
        results += storage
    else:
        missing.append(
            "cached-token storage: no price that depends on time (needs a one-hour cache write or an hourly storage price)"
        )
    return PriceInferences(
        price=price, inferences=tuple(results), not_inferred=tuple(missing), disagreements=_disagreements(results)
    )


def _disagreements(results: Sequence[Inference]) -> tuple[str, ...]:
    """Pairs of intervals for the same quantity that do not meet; an upper limit disagrees only from below."""
    quantity = [item for item in results if item.name.startswith("KV bytes per token")]
    points = [item for item in quantity if item.bound == "interval"]
    found = []
    for point in points:
        for other in quantity:
            if other is not point and other.high < point.low:
                found.append(
                    f"{other.name}: at most {other.high:,.0f} B/token, below the crossover's {point.low:,.0f}: "
                    "this tier or this argument does not hold"
                )
    return tuple(found)


def relative_sizes(
    rows: Sequence[ListPrice], table: dict[str, Assumption]
) -> list[tuple[ListPrice, float, float, float]]:
    """Active parameters of each model over the cheapest one's, (low, middle, high): input-price ratios within one vendor,
    widened by how unlike the margins of two models of one vendor may be."""
    floor = min(rows, key=lambda row: row.input_usd_per_mtok)
    spread = table["phase_margin_ratio"].high
    sizes = []
    for row in rows:
        ratio = row.input_usd_per_mtok / floor.input_usd_per_mtok
        wide = 1.0 if row is floor else spread
        sizes.append((row, ratio / wide, ratio, ratio * wide))
    return sizes
