"""What the planner hands out: a stable schema, tables for every kind of answer, and a page that needs no network."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ridgepoint.plan.named import named_model
from ridgepoint.plan.pools import parse_pool
from ridgepoint.plan.render import render
from ridgepoint.plan.report import SCHEMA, report
from ridgepoint.plan.search import Plan, Question, plan
from ridgepoint.plan.workload import Goal, Workload


def answer(goal: Goal, *pools: str, work: Workload | None = None) -> Plan:
    found = tuple(parse_pool(name, "fp8") for name in pools)
    return plan(
        Question(model=named_model("deepseek-v3"), pools=found, workload=work or Workload(users=400), goal=goal)
    )


PLANS = {
    "feasible": lambda: answer(Goal(tpot_s=0.06, ttft_s=3.0), "h200", "a100"),
    "infeasible": lambda: answer(Goal(tpot_s=0.001), "h200:16"),
    "one instance": lambda: answer(Goal(), "h200:8", work=Workload()),
}


@pytest.fixture(scope="module", params=list(PLANS))
def made(request: pytest.FixtureRequest) -> tuple[Plan, dict[str, Any]]:
    found = PLANS[request.param]()
    return found, report(found, wide=True)


def walk(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value] + [item for child in value.values() for item in walk(child)]
    return [item for child in value for item in walk(child)] if isinstance(value, list) else []


def test_schema_is_plain_json_with_ordered_intervals(made: tuple[Plan, dict[str, Any]]) -> None:
    data = json.loads(json.dumps(made[1], allow_nan=False))
    assert data["schema"] == SCHEMA == "ridgepoint.plan/1"
    assert set(data) == {
        "schema", "question", "feasible", "failures", "choice", "runner_up", "alternatives", "drafts", "changes", "frontier", "explain", "kv_policy", "assumptions",
        "num_priced", "num_feasible", "saving_frac", "wide",
    }  # fmt: skip
    figures = [item for item in walk(data) if {"low", "middle", "high", "provenance"} <= set(item)]
    assert len(figures) > 30
    for item in figures:
        if item["middle"] is not None:
            assert item["low"] <= item["middle"] * (1 + 1e-9) and item["middle"] <= item["high"] * (1 + 1e-9), item
        assert item["provenance"] in ("spec", "estimate", "measure")


def test_a_server_can_read_its_settings(made: tuple[Plan, dict[str, Any]]) -> None:
    serve = made[1]["choice"]["serve"]
    assert set(serve) == {
        "tp",
        "dp_attention",
        "ep",
        "pp",
        "precision",
        "max_sequences",
        "chunk_tokens",
        "step_interval_s",
        "draft_tokens",
        "sram",
        "kv_in_sram",
    }
    assert serve["max_sequences"] >= 1 and serve["chunk_tokens"] >= 1 and serve["step_interval_s"] > 0


def test_tables_say_what_failed(made: tuple[Plan, dict[str, Any]]) -> None:
    out = io.StringIO()
    render(made[1], Console(file=out, width=160), wide=True)
    text = out.getvalue()
    for part in (
        "deepseek-v3",
        "what binds a decode step",
        "ridge batch B*",
        "next dollar",
        "KV of a pause",
        "more stages do not shrink KV",
        "Assumptions",
    ):
        assert part in text
    assert ("fails:" in text) == (not made[1]["feasible"])
    if not made[1]["feasible"]:
        assert "time per token <= 1 ms" in text and "the closest is" in text


def test_eighty_columns_cut_no_word_and_fold_no_figure(made: tuple[Plan, dict[str, Any]]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    render(made[1], console, wide=True)
    text = out.getvalue()
    assert "…" not in text
    folded = [line for line in text.splitlines() if line.startswith(("time per token", "USD per hour", "worst wait"))]
    assert len(folded) == 3 and all("(" not in line or ")" in line for line in folded)


def test_the_page_is_self_contained(made: tuple[Plan, dict[str, Any]]) -> None:
    pytest.importorskip("plotly")
    from ridgepoint.plan.page import page

    html = page(*made)
    assert html.count("plotly.js v") == 1  # embedded once
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", html)
    assert "{{" not in html.split("<script>")[0]
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', html, re.S)
    assert embedded and json.loads(embedded.group(1)) == made[1]
    charts = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)
    assert charts is not None
    figures = json.loads(charts.group(1))
    assert len(figures) == 6 == html.count('class="chart"')
    assert html.count('class="plot"') == sum(figure is not None for figure in figures)
    assert "prefers-color-scheme: dark" in html


def test_the_star_of_the_choice_lies_on_top(made: tuple[Plan, dict[str, Any]]) -> None:
    """However close the runner-up is, its diamond is open, larger, and drawn before."""
    pytest.importorskip("plotly")
    from ridgepoint.plan.charts import charts
    from ridgepoint.plan.page import page

    found, data = made
    cloud = next(chart for chart in charts(found, data) if chart.title == "Cost against speed")
    if cloud.figure is not None:
        marks = [trace for trace in cloud.figure["data"] if "star" in str(trace) or "diamond" in str(trace)]
        assert marks == cloud.figure["data"][-len(marks) :] and marks[-1]["marker"]["symbol"] == "star"
        for diamond in marks[:-1]:
            assert diamond["marker"]["symbol"] == "diamond-open"
            assert diamond["marker"]["size"] > marks[-1]["marker"]["size"]
    assert "0% cached" not in page(found, data)


def test_pool_chart_says_when_there_is_nothing_to_choose() -> None:
    pytest.importorskip("plotly")
    from ridgepoint.plan.charts import charts

    pools = (parse_pool("h200:1", "mxfp4"),)
    found = plan(
        Question(
            model=named_model("gpt-oss-120b"), pools=pools, workload=Workload(users=8), goal=Goal(), disaggregate=False
        )
    )
    last = charts(found, report(found))[-1]
    assert last.figure is None and "share" in last.empty


def test_every_field_of_the_schema_is_documented(made: tuple[Plan, dict[str, Any]]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    for name in [*made[1], *made[1]["choice"]["serve"], *made[1]["explain"]]:
        if name not in (
            "memory_bytes",
            "memory_usable_bytes",
            "kv_memory_usable_bytes",
            "prefill_memory_bytes",
            "prefill_memory_usable_bytes",
        ):
            assert f"`{name}`" in text, name
