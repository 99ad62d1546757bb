"""`ridgepoint simulate`: traffic against one replica, decided by the serving scheduler, timed by the cost model."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ridgepoint.sched.scheduler import Limits

SCHEMA = "ridgepoint.simulate/1"
PERCENTILES = (50.0, 90.0, 99.0)
SHOWN_REFUSALS = 3


def register(app: typer.Typer) -> None:
    app.command(
        "simulate",
        short_help="Try traffic with predicted seconds.",
        help="Serve made-up traffic with the real scheduler and predicted seconds.",
        epilog="Example: ridgepoint simulate gpt-oss-120b --hardware h200 --rate 4 --prompt-tokens 1000 --output-tokens 300",
    )(simulate)


def simulate(
    model: Annotated[str, typer.Argument(help="Catalogue name or config.json path.")],
    hardware: Annotated[str, typer.Option(help="Accelerator name or .toml file.")],
    rate: Annotated[float, typer.Option(help="Requests per second, Poisson.")] = 1.0,
    requests: Annotated[int, typer.Option(help="How many arrive.")] = 500,
    prompt_tokens: Annotated[int, typer.Option(help="Mean prompt length.")] = 1000,
    output_tokens: Annotated[int, typer.Option(help="Mean output length.")] = 200,
    spread: Annotated[float, typer.Option(help="Lengths vary by this share of their mean.")] = 0.5,
    shared_frac: Annotated[float, typer.Option(help="Share of each prompt that is one of --num-shared texts.")] = 0.0,
    num_shared: Annotated[int, typer.Option(help="Different shared texts.")] = 1,
    precision: Annotated[str, typer.Option(help="Number-format recipe.")] = "fp8",
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run together.")] = 256,
    max_waiting: Annotated[int, typer.Option(help="Requests that may queue; one more is refused.")] = 1024,
    max_step_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 8192,
    step_budget_s: Annotated[
        float | None, typer.Option(help="The timetable's interval: predicted seconds a step may take.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.simulate/1).")] = False,
) -> None:
    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.cost.formats import Precision
    from ridgepoint.cost.timer import CostTimer
    from ridgepoint.cost.transfer import calibration_for
    from ridgepoint.plan.layouts import smallest_layout
    from ridgepoint.plan.named import named_model
    from ridgepoint.sim.replica import replica_limits, whole_runs
    from ridgepoint.sim.run import simulate as run
    from ridgepoint.sim.traffic import poisson

    named, chip, recipe = named_model(model), accelerator(hardware), Precision.named(precision)
    layout = smallest_layout(named.spec, chip, recipe)
    timer = CostTimer(named.spec, chip, recipe, calibration_for(chip, "serving"), layout)
    traffic = poisson(
        requests_per_s=rate, num_requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
        spread=spread, shared_frac=shared_frac, num_shared=num_shared, seed=seed,
    )  # fmt: skip
    limits = replica_limits(
        named.spec, chip, layout, recipe,
        max_num_seqs=max_num_seqs, max_waiting=max_waiting, max_step_tokens=max_step_tokens, step_budget_s=step_budget_s,
    )  # fmt: skip
    outcome = run(traffic, limits, timer, whole_runs=whole_runs(named.spec, chip))
    refusals = Counter(one.refused for one in outcome.served if one.refused is not None)
    figures: dict[str, Any] = {
        "served": sum(one.refused is None for one in outcome.served),
        "refused": sum(refusals.values()),
        "refusals": dict(refusals.most_common()),
        "simulate_output_tokens_per_s": outcome.simulate_output_tokens_per_s,
        "simulate_busy_frac": outcome.busy_s / outcome.end_s if outcome.end_s else 0.0,
        "steps": outcome.num_steps,
        "preemptions": outcome.preemptions,
        "prefix_hit_frac": sum(one.cached_tokens for one in outcome.served) / sum(one.prompt_tokens for one in traffic),
        "simulate_ttft_s": outcome.percentiles("simulate_ttft_s", PERCENTILES),
        "simulate_tpot_s": outcome.percentiles("simulate_tpot_s", PERCENTILES),
    }
    head = {"model": named.name, "hardware": chip.id, "precision": precision, "layout": layout.describe()}
    if json_:
        print(json.dumps({"schema": SCHEMA, **head, "num_blocks": limits.num_blocks, **figures}, indent=2))
    else:
        _show(f"{named.name} on {layout.chips} x {chip.name}, {precision}, {rate:g} requests/s", limits, figures)


def _show(title: str, limits: Limits, figures: dict[str, Any]) -> None:
    from rich.table import Table

    from ridgepoint.cli.screen import Screen
    from ridgepoint.units import seconds

    out = Screen()
    out.print(f"[bold]{title}[/bold]; KV for {limits.num_blocks * limits.block_tokens:,} tokens", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(("simulate_", *(f"p{which:g}" for which in PERCENTILES))):
        table.add_column(name, justify="left" if index == 0 else "right")
    for name, label in (("simulate_ttft_s", "time to first token"), ("simulate_tpot_s", "time per output token")):
        table.add_row(label, *(seconds(value) for value in figures[name].values()))
    if figures["served"]:
        out.print(table)
    out.print(
        f"{figures['served']} served, {figures['refused']} refused; {figures['simulate_output_tokens_per_s']:,.0f} output "
        f"tokens/s, busy {figures['simulate_busy_frac']:.0%} of the time over {figures['steps']:,} steps; "
        f"{figures['preemptions']} preemptions, {figures['prefix_hit_frac']:.0%} of prompt tokens from the prefix cache",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for reason, count in list(figures["refusals"].items())[:SHOWN_REFUSALS]:
        out.print(f"refused {count} x: {reason}", highlight=False, soft_wrap=True)
    if len(figures["refusals"]) > SHOWN_REFUSALS:
        out.print(f"and {len(figures['refusals']) - SHOWN_REFUSALS} other reasons (--json lists them)", highlight=False)
