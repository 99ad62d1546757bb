"""`ridgepoint bench serve`: load any OpenAI-compatible URL and report latency, throughput and goodput."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ridgepoint.cli.output_file import output_file, write_output

if TYPE_CHECKING:
    from ridgepoint.server.bench.arrivals import Arrival
    from ridgepoint.server.bench.drive import Outcome, Prompts, Target

SCHEMA = "ridgepoint.bench.serve/1"

app = typer.Typer(
    help="Measure a server that runs.",
    epilog="Example: ridgepoint bench serve --help",
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="bench")


@app.command(
    "serve",
    short_help="Load an OpenAI-compatible server and time its answers.",
    help="Load an OpenAI-compatible server: --concurrency clients in a closed loop, or --rate / --trace in an open one.",
    epilog="Example: ridgepoint bench serve --url http://127.0.0.1:8000 --concurrency 8",
)
def serve(
    url: Annotated[str, typer.Option(help="The server, with or without /v1.")],
    model: Annotated[str | None, typer.Option(help="Model name; none: the first the server lists.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Or OPENAI_API_KEY.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Requests to send (of a trace: at most).")] = 100,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests in flight at most.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: Poisson arrivals per second.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Open loop: .csv or .jsonl with timestamp,input_len,output_len.")
    ] = None,
    trace_speed: Annotated[float, typer.Option(help="Replay the trace this many times faster.")] = 1.0,
    input_tokens: Annotated[int, typer.Option(min=1, help="Prompt length.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Output length.")] = 64,
    shared_tokens: Annotated[int, typer.Option(min=0, help="Leading prompt tokens that all share.")] = 0,
    vocab_size: Annotated[int, typer.Option(min=1, help="Random token ids are below this.")] = 1000,
    text_file: Annotated[Path | None, typer.Option(help="Cut prompts from this text instead of random ids.")] = None,
    respect_eos: Annotated[
        bool, typer.Option(help="Let the model end early; needed where ignore_eos is unknown.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals; sent again, a server may have them cached.")] = 0,
    goal_ttft_s: Annotated[float | None, typer.Option(help="Goodput: first token within this.")] = None,
    goal_tpot_s: Annotated[float | None, typer.Option(help="Goodput: time per token within this.")] = None,
    goal_e2e_s: Annotated[float | None, typer.Option(help="Goodput: whole answer within this.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the JSON report here too.", callback=output_file)] = None,
    save_requests: Annotated[
        Path | None, typer.Option(help="Write one JSON line per request here.", callback=output_file)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help=f"Print JSON (schema {SCHEMA}).")] = False,
) -> None:
    from ridgepoint.errors import ConfigError, EngineError
    from ridgepoint.server.bench import arrivals as when
    from ridgepoint.server.bench.drive import Prompts, json_lines, read_text
    from ridgepoint.server.bench.report import Goals, summarise

    if rate is not None and trace is not None:
        raise ConfigError("--rate and --trace both say when to send: give one")
    plan: list[Arrival]
    if trace is not None:
        plan, loop = when.read_trace(trace, limit=num_requests, speed=trace_speed), f"trace {trace}"
    elif rate is not None:
        plan, loop = when.poisson(num_requests, rate, input_tokens, output_tokens, seed), f"poisson {rate:g}/s"
    else:
        concurrency = concurrency or 1
        plan, loop = when.closed_loop(num_requests, input_tokens, output_tokens), f"closed, {concurrency} clients"
    text = read_text(text_file) if text_file is not None else None
    prompts = Prompts(seed=seed, vocab_size=vocab_size, shared_tokens=shared_tokens, text=text)
    target, outcomes = asyncio.run(
        _measure(
            url, model, api_key or os.environ.get("OPENAI_API_KEY"), plan, prompts, concurrency,
            temperature=temperature, ignore_eos=not respect_eos,
        )
    )  # fmt: skip
    summary = summarise(outcomes, Goals(ttft_s=goal_ttft_s, tpot_s=goal_tpot_s, e2e_s=goal_e2e_s))
    report = {"schema": SCHEMA, **_conditions(target, loop, concurrency, seed), **summary}
    if save is not None:
        write_output(save, json.dumps(report, indent=2) + "\n")
    if save_requests is not None:
        write_output(save_requests, json_lines(outcomes))
    if json_:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    if not summary["num_completed"]:
        first = next(iter(summary["errors"]), "nothing was sent")
        raise EngineError(f"no request of {summary['num_requests']} was answered: {first}")


async def _measure(
    url: str,
    model: str | None,
    api_key: str | None,
    plan: list[Arrival],
    prompts: Prompts,
    concurrency: int | None,
    *,
    temperature: float,
    ignore_eos: bool,
) -> tuple[Target, list[Outcome]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ridgepoint.server.backends import RemoteBackend, api_root
    from ridgepoint.server.bench.drive import Target, drive

    async with RemoteBackend(url, model=model, api_key=api_key) as backend:
        name = backend.model
    target = Target(root=api_root(url), model=name, api_key=api_key, temperature=temperature, ignore_eos=ignore_eos)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{name} at {url}", total=len(plan))
        outcomes = await drive(
            target, plan, prompts, concurrency=concurrency, on_end=lambda outcome: progress.advance(task)
        )
    return target, outcomes


def _conditions(target: Target, loop: str, concurrency: int | None, seed: int) -> dict[str, Any]:
    from ridgepoint import __version__

    return {
        "command": " ".join(["ridgepoint", *_shown_arguments()]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ridgepoint": __version__,
        "client": {"platform": platform.platform(), "cores": os.cpu_count()},
        "url": target.root,
        "model": target.model,
        "arrivals": loop,
        "concurrency": concurrency,
        "seed": seed,
    }


def _shown_arguments() -> list[str]:
    """The command line without the key."""
    shown: list[str] = []
    hide = False
    for argument in sys.argv[1:]:
        shown.append("***" if hide else argument if not argument.startswith("--api-key=") else "--api-key=***")
        hide = argument == "--api-key"
    return shown


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    from ridgepoint.cli.screen import Screen
    from ridgepoint.units import seconds

    out = Screen()
    out.print(f"[bold]{report['model']}[/bold] at {report['url']}; arrivals: {report['arrivals']}", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measure_")
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    for name in names:
        table.add_column(name, justify="right")
    for key, title in (("ttft_s", "time to first token"), ("tpot_s", "time per output token"),
                       ("itl_s", "inter-token latency"), ("e2e_s", "whole request")):  # fmt: skip
        found = report[key]
        table.add_row(title, *(seconds(found[name]) if found else "-" for name in names))
    out.print(table)
    out.print(
        f"{report['num_completed']} of {report['num_requests']} requests in {seconds(report['duration_s'])}: "
        f"{_rate(report['requests_per_s'])} requests/s, {_rate(report['output_tokens_per_s'])} output tokens/s, "
        f"{_rate(report['total_tokens_per_s'])} tokens/s with prompts "
        f"({report['cached_tokens']} of {report['prompt_tokens']} prompt tokens cached)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if report["goodput_frac"] is not None:
        out.print(
            f"goodput {_rate(report['goodput_requests_per_s'])} requests/s: "
            f"{100 * report['goodput_frac']:.1f} % kept every goal",
            highlight=False,
        )
    for message, count in report["errors"].items():
        out.print(f"[red]{count} x[/red] {message}", highlight=False, soft_wrap=True)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
