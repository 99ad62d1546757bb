"""API price lists as rows of plain numbers, read from the genai-prices package (the only file that imports it).

Knows which price holds at a moment and where a long-context tier begins; infers nothing. Prices are USD per million
tokens, as vendors print them. A model whose price has no input or no output part (embeddings, speech) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ridgepoint.catalog.nearest import nearest
from ridgepoint.errors import ConfigError, MissingExtraError


@dataclass(frozen=True, kw_only=True)
class ListPrice:
    """One model's prices. `long_*` apply to whole requests above `long_threshold_tokens`; None is not sold or not known."""

    vendor: str
    model: str
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    cached_input_usd_per_mtok: float | None = None
    cache_write_usd_per_mtok: float | None = None
    cache_write_1h_usd_per_mtok: float | None = None
    cache_storage_usd_per_mtok_hour: float | None = None
    long_threshold_tokens: int | None = None
    long_input_usd_per_mtok: float | None = None
    long_output_usd_per_mtok: float | None = None
    context_window: int | None = None
    source: str = "stated by the user"

    def __post_init__(self) -> None:
        for name in ("input_usd_per_mtok", "output_usd_per_mtok"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{self.model}: {name} must be positive, got {getattr(self, name):g}")
        optional = (
            "cached_input_usd_per_mtok", "cache_write_usd_per_mtok", "cache_write_1h_usd_per_mtok",
            "cache_storage_usd_per_mtok_hour", "long_input_usd_per_mtok", "long_output_usd_per_mtok", "long_threshold_tokens",
        )  # fmt: skip
        for name in optional:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{self.model}: {name} must not be negative, got {value:g}")
        if self.long_threshold_tokens is None and (self.long_input_usd_per_mtok or self.long_output_usd_per_mtok):
            raise ConfigError(
                f"{self.model}: a long-context price needs its threshold", hint="give --long-threshold TOKENS"
            )

    def stating(self, **prices: float | None) -> ListPrice:
        """The same list with the prices that are not None replaced, and the source saying so."""
        given: dict[str, Any] = {name: value for name, value in prices.items() if value is not None}
        if not given:
            return self
        return replace(self, source=self.source + "; stated by the user: " + ", ".join(given), **given)

    @property
    def output_over_input(self) -> float:
        return self.output_usd_per_mtok / self.input_usd_per_mtok


def vendors() -> list[str]:
    return [provider.id for provider in _providers()]


def list_prices(vendor: str, at: datetime | None = None) -> list[ListPrice]:
    """Every text model `vendor` sells, at the prices of `at` (default: now), dearest output first."""
    moment = at or datetime.now(tz=UTC)
    by_id = {provider.id: provider for provider in _providers()}
    if vendor not in by_id:
        near = ", ".join(nearest(vendor, by_id))
        raise ConfigError(f"unknown vendor {vendor!r}", hint=f"try {near}; `ridgepoint prices` lists all")
    rows = [row for model in by_id[vendor].models if (row := _row(vendor, model, moment)) is not None]
    return sorted(rows, key=lambda row: (-row.output_usd_per_mtok, row.model))


def list_price(vendor: str, model: str, at: datetime | None = None) -> ListPrice:
    rows = list_prices(vendor, at)
    for row in rows:
        if row.model == model:
            return row
    near = ", ".join(nearest(model, [row.model for row in rows], limit=6))
    raise ConfigError(f"{vendor} has no priced text model {model!r}", hint=f"try {near}")


def _providers() -> list[Any]:
    try:
        from genai_prices.data import providers
    except ImportError:
        raise MissingExtraError("genai-prices", "plan", "reading API price lists") from None
    return list(providers)


def _row(vendor: str, model: Any, moment: datetime) -> ListPrice | None:
    prices = model.get_prices(moment)
    flat = {name: _base(getattr(prices, name)) for name in ("input_mtok", "output_mtok", "cache_read_mtok")}
    if not flat["input_mtok"] or not flat["output_mtok"]:
        return None
    threshold, long_input = _first_tier(prices.input_mtok)
    output_threshold, long_output = _first_tier(prices.output_mtok)
    if threshold is None:
        threshold = output_threshold
    if output_threshold not in (None, threshold):
        long_output = None  # two thresholds: only the first one's argument is made
    return ListPrice(
        vendor=vendor,
        model=model.id,
        input_usd_per_mtok=flat["input_mtok"],
        output_usd_per_mtok=flat["output_mtok"],
        cached_input_usd_per_mtok=flat["cache_read_mtok"],
        cache_write_usd_per_mtok=_base(prices.cache_write_mtok),
        cache_write_1h_usd_per_mtok=_base(prices.cache_write_1h_mtok),
        long_threshold_tokens=threshold,
        long_input_usd_per_mtok=long_input,
        long_output_usd_per_mtok=long_output,
        context_window=model.context_window,
        source=f"genai-prices {_version()}, prices of {moment:%Y-%m-%d %H:%M} UTC",
    )


def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


def _base(price: Any) -> float | None:
    if price is None:
        return None
    return float(price.base) if hasattr(price, "tiers") else float(price)


def _first_tier(price: Any) -> tuple[int | None, float | None]:
    if price is None or not getattr(price, "tiers", None):
        return None, None
    return int(price.tiers[0].start), float(price.tiers[0].price)
