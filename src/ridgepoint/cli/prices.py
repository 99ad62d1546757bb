"""`ridgepoint prices`: what an API price list says about the model behind it. Prints `plan.prices`; computes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgepoint.errors import ConfigError

if TYPE_CHECKING:
    from ridgepoint.plan.assume import Assumption, Inference
    from ridgepoint.plan.pricelist import ListPrice
    from ridgepoint.plan.prices import PriceInferences

SCHEMA = "ridgepoint.prices/1"


def register(app: typer.Typer) -> None:
    app.command(
        "prices",
        short_help="What an API price list gives away.",
        help="Infer bytes per token, active parameters and prefill/decode balance from API prices.",
        epilog="Example: ridgepoint prices google gemini-2.5-pro",
    )(prices)


def prices(
    vendor: Annotated[
        str | None, typer.Argument(help="Vendor in the genai-prices list; leave out with --input-usd.")
    ] = None,
    model: Annotated[
        str | None, typer.Argument(help="Model of that vendor; without it, all its models are compared.")
    ] = None,
    input_usd: Annotated[
        float | None, typer.Option(help="USD per million input tokens, instead of a listed model.")
    ] = None,
    output_usd: Annotated[float | None, typer.Option(help="USD per million output tokens.")] = None,
    cached_input_usd: Annotated[float | None, typer.Option(help="USD per million cached input tokens.")] = None,
    cache_write_usd: Annotated[
        float | None, typer.Option(help="USD per million tokens written to the short cache.")
    ] = None,
    cache_write_1h_usd: Annotated[
        float | None, typer.Option(help="USD per million tokens written to the one-hour cache.")
    ] = None,
    cache_storage_usd: Annotated[
        float | None, typer.Option(help="USD per million cached tokens per hour; may also be added to a listed model.")
    ] = None,
    long_threshold: Annotated[int | None, typer.Option(help="Tokens above which long-context prices hold.")] = None,
    long_input_usd: Annotated[
        float | None, typer.Option(help="USD per million input tokens above the threshold.")
    ] = None,
    long_output_usd: Annotated[
        float | None, typer.Option(help="USD per million output tokens above the threshold.")
    ] = None,
    active_params: Annotated[
        str | None, typer.Option(help="Active parameters if known (1e11 or 5e10:2e11); then the margin is inferred.")
    ] = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="Accelerators the vendor may run on (default: H100, H200, B200, GB200).")
    ] = None,
    assume: Annotated[
        list[str] | None, typer.Option(help="Override an assumption: NAME=VALUE or NAME=LOW:HIGH.")
    ] = None,
    at: Annotated[datetime | None, typer.Option(help="Moment whose prices hold, UTC (default: now).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.prices/1).")] = False,
) -> None:
    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.catalog.tiers import tiers_of
    from ridgepoint.plan import pricelist
    from ridgepoint.plan.assume import parse_range
    from ridgepoint.plan.prices import defaults, infer_from_price, relative_sizes

    chips = [accelerator(name) for name in hardware or ("h100", "h200", "b200", "gb200")]
    table = _overridden(defaults(chips), assume or [])
    moment = at.replace(tzinfo=UTC) if at else datetime.now(tz=UTC)
    if input_usd is not None or output_usd is not None:
        if vendor is not None:
            raise ConfigError("give either a vendor or --input-usd and --output-usd, not both")
        if input_usd is None or output_usd is None:
            raise ConfigError("prices stated by hand need both --input-usd and --output-usd")
        price = pricelist.ListPrice(
            vendor="stated", model="stated", input_usd_per_mtok=input_usd, output_usd_per_mtok=output_usd,
            cached_input_usd_per_mtok=cached_input_usd, cache_write_usd_per_mtok=cache_write_usd,
            cache_write_1h_usd_per_mtok=cache_write_1h_usd, cache_storage_usd_per_mtok_hour=cache_storage_usd,
            long_threshold_tokens=long_threshold, long_input_usd_per_mtok=long_input_usd, long_output_usd_per_mtok=long_output_usd,
        )  # fmt: skip
    elif vendor is None:
        _vendors(pricelist.vendors(), json_)
        return
    elif model is None:
        rows = pricelist.list_prices(vendor, moment)
        if not rows:
            raise ConfigError(f"{vendor} lists no model with both an input and an output price")
        _compare(vendor, relative_sizes(rows, table), json_)
        return
    else:
        price = pricelist.list_price(vendor, model, moment).stating(
            cached_input_usd_per_mtok=cached_input_usd, cache_write_usd_per_mtok=cache_write_usd, cache_write_1h_usd_per_mtok=cache_write_1h_usd,
            cache_storage_usd_per_mtok_hour=cache_storage_usd, long_threshold_tokens=long_threshold, long_input_usd_per_mtok=long_input_usd,
            long_output_usd_per_mtok=long_output_usd,
        )  # fmt: skip
    known = parse_range("active_params", active_params, "params") if active_params else None
    result = infer_from_price(price, table, tiers_of(chips[0]), active_params=known)
    if json_:
        print(json.dumps(_as_json(result), indent=2))
    else:
        _show(result)


def _overridden(table: dict[str, Assumption], overrides: list[str]) -> dict[str, Assumption]:
    from ridgepoint.plan.assume import parse_range

    changed = dict(table)
    for text in overrides:
        name, _, value = text.partition("=")
        if name not in table or not value:
            raise ConfigError(f"unknown assumption {text!r}", hint="NAME=LOW:HIGH with NAME one of " + ", ".join(table))
        changed[name] = parse_range(name, value, table[name].unit)
    return changed


def _as_json(result: PriceInferences) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "price": asdict(result.price),
        "inferences": [
            {**asdict(item), "provenance": item.provenance, "width_shares": dict(item.width_shares)}
            for item in result.inferences
        ],
        "not_inferred": list(result.not_inferred),
        "disagreements": list(result.disagreements),
    }


def _show(result: PriceInferences) -> None:
    from rich.table import Table

    from ridgepoint.cli.screen import Screen

    out = Screen()
    price = result.price
    out.print(f"[bold]{price.vendor} {price.model}[/bold]  {_price_line(price)}", highlight=False, soft_wrap=True)
    out.print(f"[dim]{price.source}[/dim]", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("inferred (estimate_, 80 % interval)")
    for name in ("low", "middle", "high"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    table.add_column("widest unknown")
    for item in result.inferences:
        table.add_row(*_cells(item))
    out.print(table)
    for number, item in enumerate(result.inferences, 1):
        out.print(f"{number}. [bold]{item.name}[/bold] = {item.formula}", highlight=False, soft_wrap=True)
        out.print(f"   {item.reasoning}", highlight=False, soft_wrap=True)
    out.print("\n[bold]Assumptions[/bold]")
    seen = {item.name: item for inference in result.inferences for item in inference.assumptions}
    for assumption in seen.values():
        ends = (
            f"{assumption.low:.3g}"
            if assumption.low == assumption.high
            else f"{assumption.low:.3g} to {assumption.high:.3g}"
        )
        out.print(f"  {assumption.name} = {ends} {assumption.unit}: {assumption.why}", highlight=False, soft_wrap=True)
    for line in result.disagreements:
        out.print(f"[yellow]disagreement:[/yellow] {line}", highlight=False, soft_wrap=True)
    for line in result.not_inferred:
        out.print(f"[dim]not inferred: {line}[/dim]", highlight=False, soft_wrap=True)


def _cells(item: Inference) -> tuple[str, ...]:
    from ridgepoint.units import si

    def figure(value: float) -> str:
        return f"{value:.2g}" if 0.001 < value < 1000 else si(value)

    widest = f"{item.width_shares[0][0]} ({item.width_shares[0][1]:.0%})" if item.width_shares else "none"
    low = "at most" if item.bound == "upper" else figure(item.low)
    return item.name, low, figure(item.middle), figure(item.high), item.unit, widest


def _price_line(price: ListPrice) -> str:
    parts = [f"in ${price.input_usd_per_mtok:g}", f"out ${price.output_usd_per_mtok:g}"]
    if price.cached_input_usd_per_mtok is not None:
        parts.append(f"cached ${price.cached_input_usd_per_mtok:g}")
    if price.long_threshold_tokens:
        long = [
            f"${x:g}" if x is not None else "-" for x in (price.long_input_usd_per_mtok, price.long_output_usd_per_mtok)
        ]
        parts.append(f"above {price.long_threshold_tokens:,} tokens {long[0]} / {long[1]}")
    return ", ".join(parts) + " per Mtok"


def _compare(vendor: str, sizes: list[tuple[ListPrice, float, float, float]], json_: bool) -> None:
    if json_:
        rows = [
            {
                "price": asdict(row),
                "active_params_over_cheapest": {"low": low, "middle": middle, "high": high, "provenance": "estimate"},
            }
            for row, low, middle, high in sizes
        ]
        print(json.dumps({"schema": SCHEMA, "vendor": vendor, "models": rows}, indent=2))
        return
    from rich.table import Table

    from ridgepoint.cli.screen import Screen

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=f"{vendor}: relative sizes from input prices",
        title_justify="left",
    )
    for name in ("model", "in $/Mtok", "out", "out/in", "long above", "active params over the cheapest"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row, low, middle, high in sizes:
        long = f"{row.long_threshold_tokens:,}" if row.long_threshold_tokens else ""
        table.add_row(
            row.model, f"{row.input_usd_per_mtok:g}", f"{row.output_usd_per_mtok:g}", f"{row.output_over_input:.1f}", long,
            f"{middle:.3g} ({low:.3g} to {high:.3g})",
        )  # fmt: skip
    Screen().print(table)


def _vendors(names: list[str], json_: bool) -> None:
    if json_:
        print(json.dumps({"schema": SCHEMA, "vendors": names}))
    else:
        print("\n".join(names))
