"""`ridgepoint kv-hold`: how long a paused conversation's KV is worth keeping, and where. Prints `plan.hold`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ridgepoint.plan.hold import HoldPlan, Range

SCHEMA = "ridgepoint.kv-hold/1"
ROWS_WIDTH = 160  # columns a row needs for all its figures


def register(app: typer.Typer) -> None:
    app.command(
        "kv-hold",
        short_help="How long a pause's KV is worth keeping, and where.",
        help="Break-even hold time of a paused request's KV per memory tier, against recomputing it.",
        epilog="Example: ridgepoint kv-hold deepseek-v3 --hardware h200 --context 32000 --reuse-prob 0.5",
    )(kv_hold)


def kv_hold(
    model: Annotated[str, typer.Argument(help="Catalogue name or config.json path.")],
    hardware: Annotated[str, typer.Option(help="Accelerator name or .toml file.")],
    context: Annotated[int, typer.Option(help="Tokens of the paused conversation.")] = 8192,
    reuse_prob: Annotated[float, typer.Option(help="Probability that the request ever comes back.")] = 0.5,
    mean_pause_s: Annotated[
        float | None,
        typer.Option(help="Mean pause of those that come back, seconds; gives the best time-to-live per tier."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Number-format recipe.")] = "fp8",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.kv-hold/1).")] = False,
) -> None:
    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.catalog.tiers import tiers_of
    from ridgepoint.cost.formats import Precision
    from ridgepoint.cost.transfer import calibration_for
    from ridgepoint.plan.hold import plan_hold
    from ridgepoint.plan.layouts import smallest_layout
    from ridgepoint.plan.named import named_model

    named, chip, recipe = named_model(model), accelerator(hardware), Precision.named(precision)
    layout = smallest_layout(named.spec, chip, recipe)
    plan = plan_hold(
        named.spec,
        chip,
        layout,
        recipe,
        calibration_for(chip, "serving"),
        tiers_of(chip),
        context_tokens=context,
        reuse_prob=reuse_prob,
        mean_pause_s=mean_pause_s,
    )
    if json_:
        head = {
            "schema": SCHEMA,
            "model": named.name,
            "hardware": chip.id,
            "precision": precision,
            "layout": layout.describe(),
        }
        print(json.dumps({**head, **asdict(plan)}, indent=2))
    else:
        _show(f"{named.name} on {layout.chips} x {chip.name}, {precision}", plan)


def _cells(plan: HoldPlan) -> dict[str, list[str]]:
    """Heading -> the figure of each way, "" where there is none."""
    from ridgepoint.cli.figures import duration, figure

    def spread(value: Range | None, unit: str) -> str:
        return "" if value is None else figure(value.low, value.high, unit)

    cells = {
        "write": [spread(way.estimate_write_usd, "USD") for way in plan.ways],
        "hold per minute": [
            figure(60 * way.estimate_rate_usd_per_s.low, 60 * way.estimate_rate_usd_per_s.high, "USD") for way in plan.ways
        ],
        "resume": [spread(way.estimate_resume_usd, "USD") for way in plan.ways],
        "resume time": [duration(way.estimate_resume_s) for way in plan.ways],
        "beats recompute up to": [spread(way.breakeven_vs_recompute_s, "s") for way in plan.ways],
    }  # fmt: skip
    if plan.mean_pause_s:
        cells[f"best hold, mean pause {duration(plan.mean_pause_s)}"] = [
            spread(way.best_ttl_s, "s") for way in plan.ways
        ]
    return cells


def _table(plan: HoldPlan, *, by_way: bool) -> Table:
    """A row a way where lines are long enough; else a column a way, every interval on two lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1) if by_way else (0, 1, 0, 0))
    cells, names = _cells(plan), [way.name for way in plan.ways]
    table.add_column("way (estimate_)" if by_way else "estimate_")
    for head in cells if by_way else names:
        table.add_column(head, justify="right")
    if by_way:
        for index, name in enumerate(names):
            table.add_row(name, *(column[index] for column in cells.values()))
    else:
        for head, row in cells.items():
            table.add_row(head, *(cell.replace(" to ", "\nto ") for cell in row))
    return table


def _show(title: str, plan: HoldPlan) -> None:
    from ridgepoint.cli.figures import duration
    from ridgepoint.cli.screen import Screen
    from ridgepoint.units import si

    out = Screen()
    out.print(
        f"[bold]{title}[/bold]: {plan.context_tokens:,} tokens of context = {si(plan.kv_bytes, 'B')} of KV; "
        f"it comes back with probability {plan.reuse_prob:g}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    out.print(_table(plan, by_way=out.width >= ROWS_WIDTH))
    names = {way.id: way.name for way in plan.ways}
    parts = []
    for index, (start, ident) in enumerate(plan.cheapest):
        last = index + 1 == len(plan.cheapest)
        parts.append(
            f"{names[ident]} "
            + (f"from {duration(start)} on" if last else f"up to {duration(plan.cheapest[index + 1][0])}")
        )
    out.print("Cheapest by length of pause: " + "; ".join(parts), highlight=False, soft_wrap=True)
    if plan.reuse_prob == 0:
        out.print("[yellow]With no chance of reuse every hold loses money: drop it.[/yellow]")
