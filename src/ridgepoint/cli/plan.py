"""`ridgepoint plan`: choose a deployment. Parses options into `plan.search.Question`, prints `plan.report`; computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ridgepoint.cli.output_file import output_file, write_output
from ridgepoint.errors import ConfigError

if TYPE_CHECKING:
    from ridgepoint.plan.pools import Pool
    from ridgepoint.plan.search import Plan, Question


EXIT_INFEASIBLE = 3  # an answer was printed: no deployment keeps the goal


def register(app: typer.Typer) -> None:
    app.command(
        "plan",
        short_help="Choose hardware, layout and batch for a goal.",
        help="Choose hardware, layout, batch and prefill:decode ratio for a model and a goal, and say what binds.",
        epilog="Example: ridgepoint plan minimax-m2 --hardware gb200-nvl72 --users 5000 --tpot-ms 20 --ttft-ms 1000 --explain",
    )(plan)


def plan(
    model: Annotated[str | None, typer.Argument(help="Catalogue name, or the path of a config.json.")] = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:COUNT or a .toml file, for prefill and decode. Repeatable.")
    ] = None,
    prefill_hardware: Annotated[
        list[str] | None, typer.Option(help="Hardware that may only prefill. Repeatable.")
    ] = None,
    decode_hardware: Annotated[
        list[str] | None, typer.Option(help="Hardware that may only decode. Repeatable.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Formats to consider: bf16, fp8, fp8_kv8, int8, int4, mxfp4, nvfp4, ...; HARDWARE=FORMAT for one chip. Repeatable."
        ),
    ] = None,
    rent: Annotated[
        list[str] | None, typer.Option(help="USD per chip-hour: NAME=2.5, instead of the catalogue's range.")
    ] = None,
    share_units: Annotated[
        bool,
        typer.Option(
            "--share-units/--whole-units",
            help="Pay only for chips that work, others sharing nodes and racks; or for whole units as they are sold.",
        ),
    ] = False,
    users: Annotated[int | None, typer.Option(help="Requests in flight at once.")] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="Arrival rate, instead of --users.")] = None,
    input_tokens: Annotated[int, typer.Option(help="Mean prompt.")] = 2000,
    output_tokens: Annotated[int, typer.Option(help="Mean answer.")] = 500,
    thinking_tokens: Annotated[int, typer.Option(help="Mean reasoning tokens before the answer.")] = 0,
    prefix_hit: Annotated[float, typer.Option(help="Fraction of the prompt found cached.")] = 0.0,
    rollouts: Annotated[int, typer.Option(help="Answers per prompt (parallel samples).")] = 1,
    think_time_s: Annotated[float, typer.Option(help="Pause of a user between answer and next request.")] = 0.0,
    draft_tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Speculated tokens per step; repeat to choose among them. With --acceptance alone, 0 to 8 are tried."
        ),
    ] = None,
    drafter: Annotated[
        str, typer.Option(help="Who drafts: ngram (free), mtp (the model's own module), or a model's name.")
    ] = "ngram",
    acceptance: Annotated[float, typer.Option(help="Probability that a speculated token is accepted.")] = 0.0,
    mean_pause_s: Annotated[float, typer.Option(help="Mean pause between turns, for the KV policy.")] = 60.0,
    reuse_prob: Annotated[float, typer.Option(help="Probability that a conversation continues.")] = 0.5,
    ttft_ms: Annotated[float | None, typer.Option(help="Goal: mean time to first token at most.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Goal: time per written token at most.")] = None,
    wait_ms: Annotated[
        float | None, typer.Option(help="Goal: worst wait of who just missed a step (two intervals) at most.")
    ] = None,
    interval_ms: Annotated[
        list[float] | None,
        typer.Option(
            help="Step intervals to consider, instead of free-running steps and a grid of timetables. Repeatable."
        ),
    ] = None,
    usd_per_mtok: Annotated[
        float | None, typer.Option(help="Goal: USD per million written tokens, all in, at most.")
    ] = None,
    watts: Annotated[float | None, typer.Option(help="Goal: accelerator power at most.")] = None,
    chips: Annotated[int | None, typer.Option(help="Goal: chips at most.")] = None,
    context: Annotated[int | None, typer.Option(help="Goal: longest request that must fit, tokens.")] = None,
    minimise: Annotated[str, typer.Option(help="usd, watts, chips, tpot or ttft.")] = "usd",
    confidence: Annotated[
        float, typer.Option(help="Probability with which limits must hold; 0.5 compares middle estimates.")
    ] = 0.9,
    engine: Annotated[
        str,
        typer.Option(
            "--calibration",
            "--engine",
            help="What the engine reaches: serving (the middle), tuned (the best), before-fit, roofline, ...",
        ),
    ] = "serving",
    disaggregate: Annotated[bool, typer.Option(help="Also consider separate prefill and decode pools.")] = True,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also: roofs by batch, terms, rack boundary, old accelerators, assumptions."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON (schema ridgepoint.plan/1).")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write a self-contained page with charts.", callback=output_file)
    ] = None,
    example: Annotated[str | None, typer.Option(help="Run a worked example by name, or `all`.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --example: write the pages (Markdown) into this folder.")
    ] = None,
) -> None:
    from ridgepoint.plan.search import DRAFT_LENGTHS, Question
    from ridgepoint.plan.workload import Goal, Workload

    if example is not None:
        _examples(example, write)
        return
    if write is not None:
        raise ConfigError("--write goes with --example", hint="--html FILE writes a page for this plan")
    if model is None:
        raise ConfigError("which model?", hint="ridgepoint plan gpt-oss-120b --hardware h200")
    from ridgepoint.plan.named import named_drafter, named_model

    named = named_model(model)
    lengths = tuple(sorted(set(draft_tokens or (DRAFT_LENGTHS if acceptance else ()))))
    question = Question(
        model=named,
        pools=_pools(hardware or [], prefill_hardware or [], decode_hardware or [], precision or [], rent or [], model, engine, share_units),
        workload=Workload(
            input_tokens=input_tokens, output_tokens=output_tokens, thinking_tokens=thinking_tokens, prefix_hit_frac=prefix_hit, users=users,
            requests_per_s=requests_per_s, think_time_s=think_time_s, rollouts=rollouts, draft_tokens=max(lengths, default=0), acceptance=acceptance,
            mean_pause_s=mean_pause_s, reuse_prob=reuse_prob,
        ),
        goal=Goal(
            ttft_s=_ms(ttft_ms), tpot_s=_ms(tpot_ms), wait_s=_ms(wait_ms), usd_per_mtok=usd_per_mtok, watts=watts, chips=chips, context=context, minimise=minimise,
            confidence=confidence,
        ),
        disaggregate=disaggregate, intervals_s=tuple(ms / 1e3 for ms in interval_ms) if interval_ms else None, drafter=named_drafter(drafter, named),
        draft_lengths=lengths,
    )  # fmt: skip
    _answer(_run(question), explain=explain, json_=json_, html=html)


def _ms(value: float | None) -> float | None:
    return None if value is None else value / 1e3


def _pools(
    both: list[str],
    prefill: list[str],
    decode: list[str],
    precision: list[str],
    rent: list[str],
    model: str,
    engine: str,
    share_units: bool,
) -> tuple[Pool, ...]:
    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.plan.pools import default_precision, parse_pool

    rents = {name: _number("--rent", name, value) for name, value in (_pair("--rent", text) for text in rent)}
    for name, value in rents.items():
        if not value > 0:
            raise ConfigError(f"--rent {name}: must be positive, got {value:g}")
    formats: dict[str, list[str]] = {}
    for text in precision:
        name, _, recipe = text.rpartition("=")
        formats.setdefault(name, []).append(recipe)
    pools = []
    for role, texts in (("any", both), ("prefill", prefill), ("decode", decode)):
        for text in texts:
            name = text.rpartition(":")[0] if ":" in text else text
            recipes = (
                formats.get(name)
                or formats.get(accelerator(name).id)
                or formats.get("")
                or [default_precision(model, name)]
            )
            pools += [
                parse_pool(text, recipe, role, rents=rents, engine=engine, share_units=share_units)
                for recipe in dict.fromkeys(recipes)
            ]
    named = {text.rpartition(":")[0] if ":" in text else text for text in [*both, *prefill, *decode]}
    unused = (set(rents) | set(formats)) - {""} - named - {pool.chip.id for pool in pools}
    if unused:
        raise ConfigError(f"{min(unused)!r} is named by --rent or --precision but is not among the hardware")
    return tuple(pools)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{option} {text!r}: expected NAME=VALUE")
    return name, value


def _number(option: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} {name}: {text!r} is not a number") from None


def _run(question: Question) -> Plan:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ridgepoint.plan.search import plan as search

    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("planning", total=1.0)
        return search(question, lambda done, what: bar.update(task, completed=done, description=what))


def _answer(plan: Plan, *, explain: bool, json_: bool, html: Path | None) -> None:
    from ridgepoint.plan.report import report

    data = report(plan, wide=explain or html is not None)
    if html is not None:
        from ridgepoint.plan.page import page

        write_output(html, page(plan, data))
        typer.echo(f"wrote {html}", err=True)
    if json_:
        print(json.dumps(data, indent=2))
    else:
        from ridgepoint.cli.screen import Screen
        from ridgepoint.plan.render import render

        render(data, Screen(), wide=explain)
    if not data["feasible"]:
        raise typer.Exit(EXIT_INFEASIBLE)


def _examples(name: str, write: Path | None) -> None:
    from ridgepoint.cli.plan_examples import EXAMPLES, example_page

    names = list(EXAMPLES) if name == "all" else [name]
    if name != "all" and name not in EXAMPLES:
        raise ConfigError(f"unknown example {name!r}", hint="all, or one of " + ", ".join(EXAMPLES))
    for each in names:
        text = example_page(each)
        if write is None:
            print(text)
        else:
            write.mkdir(parents=True, exist_ok=True)
            write_output(write / f"{each}.md", text)
            typer.echo(f"wrote {write / f'{each}.md'}", err=True)
