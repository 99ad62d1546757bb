"""The single arguments that lead from a price to a property of the model behind it, each a formula over assumptions.

One function per argument, returning an `Inference` with its reasoning in words. Which of them apply to a price list, and whether
they agree, is for `prices` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ridgepoint.catalog.tiers import Tier
from ridgepoint.plan.assume import Assumption, Inference, Samples, infer
from ridgepoint.plan.pricelist import ListPrice

TOKENS = 1e6  # prices are per million tokens


def _use(table: dict[str, Assumption], *names: str) -> list[Assumption]:
    return [table[name] for name in names]


def _known_or_priced(
    price: ListPrice, table: dict[str, Assumption], stated: Assumption | None
) -> tuple[list[Assumption], str]:
    """Assumptions that give active parameters: the stated figure, or those of the input-price argument."""
    if stated is not None:
        return [replace(stated, name="active_params")], ""
    return _use(
        table, "usd_per_flop", "margin", "load_frac", "prefill_flops_frac"
    ), "; active parameters as inferred from the input price"


def _params_of(price: ListPrice, drawn: dict[str, Samples]) -> Samples:
    if "active_params" in drawn:
        return drawn["active_params"]
    usd = price.input_usd_per_mtok / TOKENS
    return usd / drawn["margin"] * drawn["load_frac"] * drawn["prefill_flops_frac"] / (2 * drawn["usd_per_flop"])


def argue_active_params(price: ListPrice, table: dict[str, Assumption]) -> Inference:
    return infer(
        "active parameters per token",
        "params",
        "input price / margin x load x achieved fraction / (2 x USD per FLOP)",
        "Prefill is compute-bound, so the price of an uncached input token pays for 2 FLOPs per active parameter.",
        _use(table, "usd_per_flop", "margin", "load_frac", "prefill_flops_frac"),
        lambda **drawn: _params_of(price, drawn),
    )


def argue_margin(price: ListPrice, table: dict[str, Assumption], stated: Assumption) -> Inference:
    usd = price.input_usd_per_mtok / TOKENS

    def margin(**drawn: Samples) -> Samples:
        return (
            usd
            * drawn["load_frac"]
            * drawn["prefill_flops_frac"]
            / (2 * drawn["active_params"] * drawn["usd_per_flop"])
        )

    return infer(
        "input price over its accelerator cost",
        "price/cost",
        "input price x load x achieved fraction / (2 N_active x USD per FLOP)",
        "With the active parameters stated, the same argument gives the margin instead.",
        [replace(stated, name="active_params"), *_use(table, "usd_per_flop", "load_frac", "prefill_flops_frac")],
        margin,
    )


def argue_balance(price: ListPrice, table: dict[str, Assumption]) -> list[Inference]:
    ratio = price.output_over_input
    chips = infer(
        "chip-seconds of an output token over an input token",
        "ratio",
        "output price / input price / margin ratio",
        f"One vendor, one fleet: output costs {ratio:.3g} times input because decode waits for memory where prefill computes.",
        _use(table, "phase_margin_ratio"),
        lambda phase_margin_ratio: ratio / phase_margin_ratio,
    )
    share = infer(
        "FLOP utilisation of decode",
        "of peak",
        "prefill fraction / (output/input)",
        "The same 2 FLOPs per active parameter take that many times longer: what decode leaves of the arithmetic idle is the price gap.",
        _use(table, "phase_margin_ratio", "prefill_flops_frac"),
        lambda phase_margin_ratio, prefill_flops_frac: prefill_flops_frac * phase_margin_ratio / ratio,
    )
    return [chips, share]


def argue_bytes_moved(price: ListPrice, table: dict[str, Assumption], stated: Assumption | None) -> Inference:
    ratio = price.output_over_input
    base, note = _known_or_priced(price, table, stated)
    names = {item.name for item in base}
    more = [
        item
        for item in _use(table, "ridge", "prefill_flops_frac", "decode_bytes_frac", "phase_margin_ratio")
        if item.name not in names
    ]

    def moved(**drawn: Samples) -> Samples:
        seconds_in_flops = (
            2 * _params_of(price, drawn) / drawn["prefill_flops_frac"] * ratio / drawn["phase_margin_ratio"]
        )
        return seconds_in_flops / drawn["ridge"] * drawn["decode_bytes_frac"]

    return infer(
        "memory bytes behind one output token",
        "B",
        "(output/input) x 2 N_active / prefill fraction / ridge x achieved bandwidth fraction",
        "If decode waits for memory, its time per token is bytes: this token's KV and its share of the weights" + note
        + ". Divided by a typical context it is an upper limit of KV bytes per token.",
        base + more,
        moved,
        bound="upper",
    )  # fmt: skip


def argue_kv_from_crossover(price: ListPrice, table: dict[str, Assumption], stated: Assumption | None) -> Inference:
    threshold = float(price.long_threshold_tokens or 0)
    base, note = _known_or_priced(price, table, stated)
    more = _use(table, "ridge", "crossover_over_threshold", "decode_flops_frac", "decode_bytes_frac")

    def crossing(**drawn: Samples) -> Samples:
        flops_time = 2 * _params_of(price, drawn) / drawn["decode_flops_frac"]
        context = threshold * drawn["crossover_over_threshold"]
        return flops_time / drawn["ridge"] * drawn["decode_bytes_frac"] / context

    return infer(
        "KV bytes per token (crossover)",
        "B/token",
        "2 N_active / (ridge x crossover context), each side at its achieved fraction",
        f"Below the crossover compute hides the KV reads and context is free; the price steps at {threshold:,.0f} tokens because "
        "there reading one sequence's KV takes as long as computing its token" + note + ".",
        base + more,
        crossing,
    )


def argue_kv_from_output_step(price: ListPrice, table: dict[str, Assumption]) -> Inference:
    threshold = float(price.long_threshold_tokens or 0)
    step = (float(price.long_output_usd_per_mtok or 0) - price.output_usd_per_mtok) / TOKENS
    used = _use(
        table, "usd_per_flop", "ridge", "margin", "load_frac", "decode_bytes_frac",
        "long_context_over_threshold", "short_context_over_threshold",
    )  # fmt: skip

    def stepped(**drawn: Samples) -> Samples:
        usd_per_byte = drawn["usd_per_flop"] * drawn["ridge"] / drawn["decode_bytes_frac"] / drawn["load_frac"]
        more_context = threshold * (drawn["long_context_over_threshold"] - drawn["short_context_over_threshold"])
        return step / drawn["margin"] / usd_per_byte / more_context

    return infer(
        "KV bytes per token (output step)",
        "B/token",
        "(long - short output price) / margin / USD per byte read / extra context",
        "The step pays for the extra KV a long request reads for every token it writes; active parameters are not needed. "
        "A step that also pays for batch slots lost to long sequences makes this too high.",
        used,
        stepped,
        bound="upper",
    )


def argue_attention_from_input_step(
    price: ListPrice, table: dict[str, Assumption], stated: Assumption | None
) -> Inference | None:
    if not price.long_threshold_tokens or not price.long_input_usd_per_mtok:
        return None
    premium = price.long_input_usd_per_mtok / price.input_usd_per_mtok
    if premium <= 1:
        return None
    threshold = float(price.long_threshold_tokens)
    base, note = _known_or_priced(price, table, stated)
    more = _use(table, "long_context_over_threshold", "short_context_over_threshold")

    def width(**drawn: Samples) -> Samples:
        long, short = (
            threshold * drawn["long_context_over_threshold"],
            threshold * drawn["short_context_over_threshold"],
        )
        # (N + A long) = premium (N + A short), A = heads x head width summed over layers. A long request's tokens see on
        # average half its length: 4 A x length/2 FLOPs beside 2 N.
        return _params_of(price, drawn) * (premium - 1) / np.maximum(long - premium * short, 0.05 * long)

    return infer(
        "attention width, summed over layers (H x P x L)",
        "elements",
        "N_active (p - 1) / (long - p x short), p the input premium",
        f"Input is {premium:.3g} times dearer above {threshold:,.0f} tokens because each new token's scores against the context cost "
        "4 H P L FLOPs per cached token"
        + note
        + ". Sparse or windowed attention makes the true width larger than this.",
        base + more,
        width,
    )


def argue_hit_saving(price: ListPrice, table: dict[str, Assumption]) -> Inference:
    ratio = float(price.cached_input_usd_per_mtok or 0) / price.input_usd_per_mtok
    return infer(
        "cost of a cache hit over recomputing the token",
        "ratio",
        "cached input price / input price / margin ratio",
        "What a hit still costs: holding the KV, fetching it, and the slot; recomputing is the uncached price.",
        _use(table, "phase_margin_ratio"),
        lambda phase_margin_ratio: ratio / phase_margin_ratio,
        bound="upper",
    )


def argue_storage(price: ListPrice, table: dict[str, Assumption], tiers: Sequence[Tier]) -> list[Inference]:
    """USD per token-hour of keeping KV, and for each memory tier the KV bytes per token that this would pay for."""
    if price.cache_storage_usd_per_mtok_hour:
        usd_per_token_hour = price.cache_storage_usd_per_mtok_hour / TOKENS
        how = "the hourly storage price"
    elif price.cache_write_1h_usd_per_mtok and price.cache_write_usd_per_mtok:
        extra = price.cache_write_1h_usd_per_mtok - price.cache_write_usd_per_mtok
        if extra <= 0:
            return []
        usd_per_token_hour = extra / TOKENS / (55 / 60)
        how = "what one hour of cache costs above five minutes, spread over the 55 minutes between"
    else:
        return []
    margin = table["margin"]
    rate = infer(
        "keeping one million cached tokens for an hour",
        "USD",
        "time-dependent cache price / margin",
        f"From {how}; the write itself cancels.",
        [margin],
        lambda margin: usd_per_token_hour * TOKENS / margin,
    )
    found = [rate]
    for tier in tiers:
        cost = Assumption(
            name=f"{tier.id}_usd_per_byte_hour", low=tier.usd_per_byte_hour_low, high=tier.usd_per_byte_hour_high,
            unit="USD/B/h", why=tier.source,
        )  # fmt: skip
        found.append(
            infer(
                f"KV bytes per token if held in {tier.name}",
                "B/token",
                "storage price / margin / (USD per byte-hour x overhead)",
                f"The price would pay for at most this many bytes per token of {tier.name}; a tier whose limit lies below the crossover's "
                "estimate is ruled out.",
                [margin, cost, table["tier_overhead"]],
                lambda margin, tier_overhead, **c: (
                    usd_per_token_hour / margin / (next(iter(c.values())) * tier_overhead)
                ),
                bound="upper",
            )
        )
    return found
