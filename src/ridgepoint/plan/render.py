"""A plan's report as terminal tables. Reads the schema's plain data only, so a saved JSON prints the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgepoint.cost.queueing import worst_wait_s
from ridgepoint.plan.render_wide import EXPLAIN_WIDTH, titled_table, why, wide_lines
from ridgepoint.units import seconds, si, usd

_ROWS = (
    ("time per token (TPOT)", "tpot_s"), ("  drafting, per step", "draft_s"), ("time to first token", "ttft_s"), ("  90th percentile", "ttft_p90_s"), ("step interval, or longest step", "interval_s"), ("worst wait, two of them", "worst_wait_s"),
    ("USD per Mtok written, all in", "usd_per_mtok"), ("  of which per Mtok of new input", "usd_in_per_mtok"), ("  per Mtok of output", "usd_out_per_mtok"),
    ("USD per hour", "usd_per_hour"), ("requests per second", "requests_per_s"), ("chips", "chips"), ("chips paid for", "paid_chips"), ("power", "watts"),
    ("energy per written token", "joules_per_token"), ("KV hand-off", "handoff_s"), ("time spent on prompts", "prefill_util"), ("memory filled", "memory_frac"),
)  # fmt: skip
UNFOLDED = 10_000  # columns: more than any table has
WORTH_SAYING_FRAC = 0.005  # of the objective; below, a difference would print as nothing
OBJECTIVES = {"usd": "USD", "watts": "power", "chips": "chips", "tpot": "time per token", "ttft": "time to first token"}
LIMIT_NAMES = {
    "worst_wait_s": "worst wait for a step",
    "ttft_s": "time to first token",
    "tpot_s": "time per token",
    "usd_per_mtok": "USD per Mtok",
    "watts": "power",
    "chips": "chips",
}
LIMIT_UNITS = {
    "worst_wait_s": "s",
    "ttft_s": "s",
    "tpot_s": "s",
    "usd_per_mtok": "USD",
    "watts": "W",
    "chips": "chips",
}


def value(number: Any, unit: str) -> str:
    if number is None:
        return "unknown"
    if number == "unbounded":
        return "unbounded"
    if unit == "s":
        return seconds(number)
    if unit == "USD":
        return usd(number)
    if unit == "frac":
        return f"{number:.0%}"
    if unit == "chips":
        return f"{number:,.0f}"
    if unit == "1/s":
        return f"{number:,.3g}"
    return si(number, unit)


def interval(figure: dict[str, Any]) -> str:
    low, middle, high, unit = (figure[name] for name in ("low", "middle", "high", "unit"))
    if middle is None or low == high:
        return value(middle, unit)
    return f"{value(middle, unit)} ({value(low, unit)} to {value(high, unit)})"


def render(report: dict[str, Any], console: Console, *, wide: bool) -> None:
    console.print(_headline(report), soft_wrap=True)
    _print_deployments(report, console)
    for line in notes(report):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(_frontier(report))
    if wide:
        console.print(why(report, narrow=console.width < EXPLAIN_WIDTH))
        for line in wide_lines(report):
            console.print(line, soft_wrap=True, highlight=False)
        console.print("[bold]Assumptions[/bold]")
        for line in report["assumptions"]:
            console.print(f"  {line}", soft_wrap=True, highlight=False)


def _headline(report: dict[str, Any]) -> Text:
    question = report["question"]
    model, workload = question["model"], question["workload"]
    load = load_text(workload)
    hit = f" ({workload['prefix_hit_frac']:.0%} cached)" if workload["prefix_hit_frac"] else ""
    thinking = f" + {workload['thinking_tokens']:,} thinking" if workload["thinking_tokens"] else ""
    text = Text()
    text.append(model["name"], style="bold")
    text.append(
        f" ({si(model['total_params'])} parameters, {si(model['active_params'])} active, {si(model['kv_bytes_per_token'], 'B')} of KV per token): "
        f"{load}, {workload['input_tokens']:,} tokens in{hit}, {workload['output_tokens']:,}{thinking} out\n"
    )
    goal = question["goal"]
    limits = limit_texts(goal, "<=")
    if goal["context"]:
        limits.append(f"context {goal['context']:,}")
    text.append(
        f"goal: least {OBJECTIVES[goal['minimise']]}"
        + (", " + ", ".join(limits) if limits else "")
        + f"; {report['num_priced']:,} deployments priced\n"
    )
    text.append(f"searched: {searched_text(question['searched'])}\n")
    if report["feasible"]:
        text.append(f"choice: {report['choice']['name']}", style="bold green")
        if report["saving_frac"] >= WORTH_SAYING_FRAC:
            text.append(
                f"\n  the least {OBJECTIVES[goal['minimise']]} there is would be {report['saving_frac']:.1%} below, with more chips or parts"
            )
    else:
        text.append("no deployment keeps the goal; the closest is " + report["choice"]["name"], style="bold yellow")
        for failure in report["failures"]:
            text.append(f"\n  fails: {failure_text(failure, goal, '<=')}", style="yellow")
    return text


def failure_text(failure: dict[str, Any], goal: dict[str, Any], sign: str) -> str:
    """Which limit fails, and how near to it anything comes."""
    metric, best = failure["metric"], failure["best"]
    if metric == "supply":
        many = f"{best:,.3g} times as many as there are"
        return f"chips: {f'no deployment needs fewer than {many}' if failure['alone'] else f'{many} alone, more with the other limits'}"
    unit = LIMIT_UNITS[metric]
    reached = value(best, unit) + _sure(goal, metric)
    return f"{LIMIT_NAMES[metric]} {sign} {value(failure['limit'], unit)}: " + (
        f"the least any deployment reaches is {reached}"
        if failure["alone"]
        else f"reachable alone ({reached}) but not with the other limits"
    )


def searched_text(searched: dict[str, Any]) -> str:
    intervals = searched["step_interval_s"]
    many = f"{len(intervals)} step intervals from {seconds(intervals[0])} to {seconds(intervals[-1])}"
    if len(intervals) == 1:
        many = f"a step interval of {seconds(intervals[0])}"
    pace = f"steps one after another and {many}" if searched["free_running"] else many
    drafts = searched["draft_tokens"]
    if len(drafts) > 1:
        pace += f"; {len(drafts)} draft lengths from {drafts[0]} to {drafts[-1]}"
    return f"layouts in {' and '.join(searched['memory'])}; batches: {searched['batch']}; {len(searched['chunk_tokens'])} prompt chunks; {pace}; {searched['pools']}"


def limit_texts(goal: dict[str, Any], sign: str) -> list[str]:
    asked = {**goal, "worst_wait_s": goal["wait_s"]}
    return [
        f"{LIMIT_NAMES[name]} {sign} {value(asked[name], LIMIT_UNITS[name])}"
        for name in LIMIT_NAMES if asked.get(name) is not None
    ]  # fmt: skip


def load_text(workload: dict[str, Any]) -> str:
    if workload["users"]:
        return f"{workload['users']:,} user{'s' if workload['users'] != 1 else ''}"
    return f"{workload['requests_per_s']:g} requests/s" if workload["requests_per_s"] else "one full instance"


WAYS = {"hbm": "chip memory", "ddr": "host DDR", "flash": "flash", "disk": "disk", "recompute": "recompute"}


def _sure(goal: dict[str, Any], metric: str) -> str:
    timed = metric in ("ttft_s", "tpot_s", "worst_wait_s", "usd_per_mtok")
    return f" at confidence {goal['confidence']:g}" if timed and goal["confidence"] > 0.5 else ""


def _print_deployments(report: dict[str, Any], console: Console) -> None:
    """The choice beside its runner-up; of the latter the middle figures alone where a screen has no room for more."""
    runner = report["runner_up"]
    whole = console.options.update(max_width=UNFOLDED)
    if runner and console.measure(_deployments(report, "runner-up", interval), options=whole).maximum > console.width:
        console.print(f"runner-up: {runner['name']}", soft_wrap=True, highlight=False)
        console.print(_deployments(report, "runner-up", interval_short))
    else:
        console.print(_deployments(report, f"runner-up: {runner['name']}" if runner else "", interval))


def _deployments(report: dict[str, Any], second_title: str, second_figure: Callable[[dict[str, Any]], str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("estimate_ (80 % interval)")
    table.add_column("choice" if report["feasible"] else "closest")
    runner = report["runner_up"]
    if runner:
        table.add_column(second_title)
    for label, name in _ROWS:
        first = report["choice"]["figures"].get(name)
        second = runner["figures"].get(name) if runner else None
        if first is None and second is None:
            continue
        cells = [interval(first) if first else "-"]
        if runner:
            cells.append(second_figure(second) if second else "-")
        table.add_row(label, *cells)
    cached = report["kv_policy"]["usd_cached_per_mtok"]
    table.add_row(
        "  per Mtok of cached input", f"{interval(cached)} by {WAYS[cached['way']]}", *([""] if runner else [])
    )
    return table


def notes(report: dict[str, Any]) -> list[str]:
    choice, explain = report["choice"], report["explain"]
    serve = choice["serve"]
    leave = "a timetable of one step every" if choice["timetable"] else "steps one after another, the longest of"
    lines = [
        f"serve each instance with up to {serve['max_sequences']:,} sequences, chunks of {serve['chunk_tokens']:,} prompt tokens, "
        f"{leave} {seconds(serve['step_interval_s'])}: who just missed one has boarded and arrived within {seconds(worst_wait_s(serve['step_interval_s']))}"
    ]
    shares = sorted(explain["roof_frac"].items(), key=lambda pair: -pair[1])
    lines.append(
        "what binds a decode step: " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    )
    ridge = explain["ridge_batch"]
    crossing = f"{ridge:,.0f} with this layout and context" if ridge else "compute never overtakes weight reads here"
    lines.append(
        f"ridge batch B*: {explain['ridge_formula']:,.0f} tokens by spec figures, {crossing}; this instance runs {serve['max_sequences']:,}"
    )
    top = explain["elasticities"][0]
    rest = ", ".join(
        f"{item['resource']} {item['value']:.2f}" for item in explain["elasticities"][1:4] if item["value"] > 0.005
    )
    lines.append(
        f"next dollar: {top['resource']} (1 % more takes {top['value']:.2f} % off a token)"
        + (f"; then {rest}" if rest else "")
    )
    policy = report["kv_policy"]
    parts = []
    for index, item in enumerate(policy["cheapest"]):
        last = index + 1 == len(policy["cheapest"])
        parts.append(
            f"{WAYS[item['way']]} " + ("beyond" if last else f"up to {_long(policy['cheapest'][index + 1]['from_s'])}")
        )
    lines.append(f"KV of a pause (comes back with probability {policy['reuse_prob']:g}): " + ", ".join(parts))
    if len(report["alternatives"]) > 1:
        lines.append("the best of each use of the hardware:")
        objective = _objective_name(report)
        for item in report["alternatives"]:
            lines.append(
                f"  {item['name']}: {LIMIT_NAMES[objective]} {interval_short(item['figures'][objective])}, TPOT {interval_short(item['figures']['tpot_s'])}, {interval_short(item['figures']['chips'])} chips"
            )
    if report["drafts"]:
        lines.append("the best with each draft length:")
        objective = _objective_name(report)
        for item in report["drafts"]:
            figures, tokens = item["figures"], item["serve"]["draft_tokens"]
            lines.append(
                f"  {tokens} drafted: {LIMIT_NAMES[objective]} {interval_short(figures[objective])}, TPOT {interval_short(figures['tpot_s'])}, {item['name']}"
            )
    if report["changes"]:
        lines.append("what would change the choice:")
        objective = _objective_name(report)
        for change in report["changes"]:
            figures = change["deployment"]["figures"]
            lines.append(f"  {change['what']}: {change['deployment']['name']} at {interval_short(figures[objective])}")
    if report["runner_up"] and report["feasible"]:
        objective = _objective_name(report)
        gap = report["runner_up"]["figures"][objective]["middle"] / choice["figures"][objective]["middle"] - 1
        lines.append(
            f"the runner-up is {gap:.1%} worse by {LIMIT_NAMES[objective]}: well inside the interval, so choose between them by other things"
            if gap < 0.1
            else f"the runner-up is {gap:.0%} worse by {LIMIT_NAMES[objective]}"
        )
    return lines


def _objective_name(report: dict[str, Any]) -> str:
    return {"usd": "usd_per_mtok", "watts": "watts", "chips": "chips", "tpot": "tpot_s", "ttft": "ttft_s"}[
        report["question"]["goal"]["minimise"]
    ]


def interval_short(figure: dict[str, Any]) -> str:
    return value(figure["middle"], figure["unit"])


def _long(value_s: Any) -> str:
    if value_s == "unbounded":
        return "for ever"
    return (
        seconds(value_s)
        if value_s < 7200
        else (f"{value_s / 3600:.1f} h" if value_s < 172800 else f"{value_s / 86400:.3g} days")
    )


def _frontier(report: dict[str, Any]) -> Table:
    rows = report["frontier"]
    title = "frontier" if report["feasible"] else "cost-latency frontier (none keeps every limit)"
    table = titled_table(f"{title}: {len(rows)} deployments")
    for name in ("TPOT", "TTFT", "USD/Mtok", "chips", "power", "deployment"):
        table.add_column(name, justify="left" if name == "deployment" else "right", no_wrap=name != "deployment")
    shown = rows if len(rows) <= 12 else [rows[round(i * (len(rows) - 1) / 11)] for i in range(12)]
    for row in shown:
        figures = row["figures"]
        table.add_row(
            *(interval_short(figures[name]) for name in ("tpot_s", "ttft_s", "usd_per_mtok", "chips", "watts")),
            row["name"],
        )
    return table
