"""A plan as one self-contained page: the report's figures and six interactive charts, light and dark, no network.

Charts are plain plotly descriptions; plotly.js is embedded once. Colours and fonts are CSS variables that the page's small
script writes into the charts, again whenever the reader's colour scheme changes. The only file that imports plotly.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from typing import Any

from ridgepoint.errors import MissingExtraError
from ridgepoint.plan.charts import charts
from ridgepoint.plan.render import (
    OBJECTIVES,
    failure_text,
    interval,
    interval_short,
    limit_texts,
    load_text,
    searched_text,
    value,
)
from ridgepoint.plan.render import notes as notes_of
from ridgepoint.plan.search import Plan
from ridgepoint.units import si

_FIGURE_ROWS = (
    ("Time per token", "tpot_s"), ("Drafting, per step", "draft_s"), ("Time to first token", "ttft_s"), ("Time to first token, 90th percentile", "ttft_p90_s"),
    ("USD per million tokens written, all in", "usd_per_mtok"), ("USD per million new input tokens", "usd_in_per_mtok"),
    ("USD per million output tokens", "usd_out_per_mtok"), ("USD per hour", "usd_per_hour"), ("Requests per second", "requests_per_s"),
    ("Step interval, or longest step", "interval_s"), ("Worst wait for a step, two of them", "worst_wait_s"),
    ("Chips", "chips"), ("Chips paid for, in whole nodes or racks", "paid_chips"), ("Accelerator power", "watts"), ("Energy per written token", "joules_per_token"), ("KV hand-off", "handoff_s"),
    ("Memory filled", "memory_frac"),
)  # fmt: skip


def page(plan: Plan, report: dict[str, Any]) -> str:
    """The whole HTML document."""
    template = resources.files("ridgepoint.plan").joinpath("page.html").read_text()
    figures = charts(plan, report)
    sections = "\n".join(
        f'<section class="chart"><h2>{escape(item.title)}</h2><p class="note">{escape(item.note)}</p>'
        + (
            f'<div id="chart{index}" class="plot"></div>'
            if item.figure
            else f'<p class="empty">{escape(item.empty)}</p>'
        )
        + "</section>"
        for index, item in enumerate(figures)
    )
    return (
        template.replace("{{TITLE}}", escape(f"{report['question']['model']['name']} deployment plan"))
        .replace("{{HEAD}}", _head(report))
        .replace("{{TILES}}", _tiles(report))
        .replace("{{TABLE}}", _table(report))
        .replace("{{NOTES}}", _notes(report))
        .replace("{{CHARTS}}", sections)
        .replace("{{FRONTIER}}", _frontier(report))
        .replace("{{ASSUMPTIONS}}", "".join(f"<li>{escape(line)}</li>" for line in report["assumptions"]))
        .replace("{{FIGURES}}", _script_json([item.figure for item in figures]))
        .replace("{{REPORT}}", _script_json(report))
        .replace("{{PLOTLY}}", _plotly_js())
    )


def _notes(report: dict[str, Any]) -> str:
    return "".join(
        f"<li{' class=sub' if line.startswith('  ') else ''}>{escape(line.strip())}</li>" for line in notes_of(report)
    )


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("plotly", "plan", "the HTML page") from None
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _script_json(value: Any) -> str:
    return json.dumps(value).replace("</", "<\\/")


def _head(report: dict[str, Any]) -> str:
    question = report["question"]
    model, workload, goal = question["model"], question["workload"], question["goal"]
    load = load_text(workload)
    hit = f" ({workload['prefix_hit_frac']:.0%} cached)" if workload["prefix_hit_frac"] else ""
    limits = limit_texts(goal, "≤")
    parts = [
        f"<h1>{escape(model['name'])}</h1>",
        f"<p>{si(model['total_params'])} parameters, {si(model['active_params'])} active, {si(model['kv_bytes_per_token'], 'B')} of KV per token. "
        f"{load}: {workload['input_tokens']:,} tokens in{hit}, "
        f"{workload['output_tokens'] + workload['thinking_tokens']:,} out.</p>",
        f"<p>Least {escape(OBJECTIVES[goal['minimise']])}{', ' if limits else ''}{escape(', '.join(limits))}. {report['num_priced']:,} deployments priced, "
        f"{report['num_feasible']:,} keep every limit.</p>",
        f"<p>Searched: {escape(searched_text(question['searched']))}.</p>",
    ]
    if report["feasible"]:
        parts.append(f'<p class="choice"><span>Choice</span> {escape(report["choice"]["name"])}</p>')
    else:
        parts.append(
            f'<p class="choice bad"><span>No deployment keeps the goal. Closest</span> {escape(report["choice"]["name"])}</p>'
        )
        for failure in report["failures"]:
            parts.append(f'<p class="fail">Fails: {escape(failure_text(failure, question["goal"], "≤"))}</p>')
    return "".join(parts)


def _tiles(report: dict[str, Any]) -> str:
    figures, explain = report["choice"]["figures"], report["explain"]
    items = [
        ("USD per Mtok written", figures["usd_per_mtok"]),
        ("Time per token", figures["tpot_s"]),
        ("Time to first token", figures["ttft_s"]),
        ("Chips", figures["chips"]),
    ]
    tiles = [
        f'<div class="tile"><b>{escape(interval_short(figure))}</b><span>{escape(name)}</span><small>{escape(_ends(figure))}</small></div>'
        for name, figure in items
    ]
    share = explain["roof_frac"][explain["binds"]]
    tiles.append(
        f'<div class="tile"><b>{escape(explain["binds"])}</b><span>binds a decode step</span><small>{share:.0%} of its time</small></div>'
    )
    return "".join(tiles)


def _ends(figure: dict[str, Any]) -> str:
    if figure["middle"] is None or figure["low"] == figure["high"]:
        return " "
    return f"{value(figure['low'], figure['unit'])} to {value(figure['high'], figure['unit'])}"


def _table(report: dict[str, Any]) -> str:
    runner = report["runner_up"]
    head = f"<th>estimate_ (80 % interval)</th><th>{'Choice' if report['feasible'] else 'Closest'}</th>" + (
        f"<th>Runner-up<small>{escape(runner['name'])}</small></th>" if runner else ""
    )
    rows = []
    for label, name in _FIGURE_ROWS:
        first, second = report["choice"]["figures"].get(name), runner["figures"].get(name) if runner else None
        if first is None and second is None:
            continue
        cells = [interval(first) if first else "–"] + ([interval(second) if second else "–"] if runner else [])
        rows.append(f"<tr><th>{escape(label)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _frontier(report: dict[str, Any]) -> str:
    names = (
        ("TPOT", "tpot_s"),
        ("TTFT", "ttft_s"),
        ("USD/Mtok", "usd_per_mtok"),
        ("Chips", "chips"),
        ("Power", "watts"),
    )
    head = "".join(f"<th>{name}</th>" for name, _ in names) + "<th>Deployment</th>"
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{escape(interval_short(row['figures'][name]))}</td>" for _, name in names)
        + f"<td>{escape(row['name'])}</td></tr>"
        for row in report["frontier"]
    )
    return f"<table class='left'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
