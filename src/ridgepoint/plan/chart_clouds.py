"""The two charts over everything that was priced: cost against speed, and the share of chips that prefill."""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgepoint.plan.chart_axes import Chart, chart_layout, log_axis, vertical_line
from ridgepoint.plan.choose import keeps
from ridgepoint.plan.points import Points, pareto
from ridgepoint.plan.search import Plan

MAX_CLOUD = 2500


def frontier_chart(plan: Plan, report: dict[str, Any]) -> Chart:
    points, goal = plan.points, plan.question.goal
    sensible = points["usd_per_mtok"] <= 60 * points["usd_per_mtok"].min()
    cloud = points.pick(sensible)
    title = "Cost against speed"
    if len({(f"{x:.3g}", f"{y:.3g}") for x, y in zip(cloud["tpot_s"], cloud["usd_per_mtok"], strict=True)}) < 3:
        return Chart(
            title=title, note="", figure=None, empty="One deployment carries this load here: there is nothing to trade."
        )
    groups: dict[str, np.ndarray] = {}
    for key in sorted({(k, d, p) for k, d, p in zip(cloud["kind"], cloud["d_pool"], cloud["p_pool"], strict=True)}):
        mask = (cloud["kind"] == key[0]) & (cloud["d_pool"] == key[1]) & (cloud["p_pool"] == key[2])
        pools = plan.question.pools
        name = (
            pools[int(key[1])].chip.id
            if key[0] == 0
            else f"{pools[int(key[2])].chip.id} → {pools[int(key[1])].chip.id}"
        )
        groups[name] = np.flatnonzero(mask)
    colours = ("var:weights", "var:kv", "var:links", "var:compute", "var:overhead")
    data: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for index, (name, rows) in enumerate(groups.items()):
        shown = (
            rows if len(rows) <= MAX_CLOUD // len(groups) else rng.choice(rows, MAX_CLOUD // len(groups), replace=False)
        )
        data.append(
            {"type": "scatter", "mode": "markers", "name": name, "showlegend": False, "x": _ms(cloud["tpot_s"][shown]),
             "y": _round(cloud["usd_per_mtok"][shown]), "marker": {"size": 4, "color": colours[index % len(colours)], "opacity": 0.35},
             "hovertemplate": "%{x:.3g} ms, %{y:$.3g}<extra>" + name + "</extra>"}
        )  # fmt: skip
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [None],
                "y": [None],
                "marker": {"size": 8, "color": colours[index % len(colours)]},
            }
        )
    best = cloud.pick(pareto([cloud["usd_per_mtok"], cloud["tpot_s"]]))
    order = np.argsort(best["tpot_s"])
    data.append(
        {"type": "scatter", "mode": "lines", "name": "frontier", "x": _ms(best["tpot_s"][order]), "y": _round(best["usd_per_mtok"][order]),
         "line": {"color": "var:ink", "width": 2, "shape": "hv"}, "hovertemplate": "%{x:.3g} ms, %{y:$.3g}<extra>frontier</extra>"}
    )  # fmt: skip
    data += _marks(report)
    shapes, notes = [], []
    xs = [float(x) for item in data for x in item["x"] if x is not None]
    ys = [float(y) for item in data for y in item["y"] if y is not None]
    if goal.tpot_s is not None:
        at = goal.tpot_s * 1e3
        xs.append(at)
        shapes.append(vertical_line(at, "var:soft", "dot"))
        notes.append(
            {
                "x": float(np.log10(at)),
                "y": 0.98,
                "yref": "paper",
                "text": f"limit {at:g} ms",
                "showarrow": False,
                "xanchor": "left",
                "xshift": 4,
                "font": {"color": "var:soft"},
                "bgcolor": "var:card",
            }
        )
    layout = chart_layout(
        log_axis("time per token, ms", xs),
        log_axis("USD per Mtok written, all in", ys, "$"),
        shapes=shapes,
        annotations=notes,
    )
    note = "Each dot is a priced deployment under the load. Faster costs more: the frontier is what speed costs."
    if goal.confidence > 0.5 and goal.tpot_s is not None:
        note += f" The choice keeps left of the limit by the margin that confidence {goal.confidence:g} asks for."
    return Chart(title=title, note=note, figure={"data": data, "layout": layout})


def _marks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The runner-up as an open diamond, and then, so that it lies above and within it where both are close, the choice's star."""
    marks = []
    for name, deployment, marker in (
        ("runner-up", report["runner_up"], {"size": 20, "symbol": "diamond-open", "color": "var:accent", "line": {"width": 2}}),
        ("choice" if report["feasible"] else "closest", report["choice"], {"size": 15, "symbol": "star", "color": "var:accent", "line": {"color": "var:card", "width": 1}}),
    ):  # fmt: skip
        if deployment:
            f = deployment["figures"]
            marks.append(
                {"type": "scatter", "mode": "markers", "name": name, "x": [f["tpot_s"]["middle"] * 1e3], "y": [f["usd_per_mtok"]["middle"]],
                 "marker": marker, "hovertemplate": f"{name}: {deployment['name']}<br>" + "%{x:.3g} ms, %{y:$.3g}<extra></extra>"}
            )  # fmt: skip
    return marks


def _ms(values: Any) -> list[float]:
    return [float(f"{v * 1e3:.4g}") for v in values]


def _round(values: Any) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def pool_ratio_chart(plan: Plan, report: dict[str, Any]) -> Chart:
    points = plan.points
    split = points.pick(points["kind"] == 1)
    title = "Share of chips that prefill"
    if not len(split):
        return Chart(
            title=title,
            note="",
            figure=None,
            empty="Prompts and answers share every chip here: only one kind of deployment was priced.",
        )
    goal = plan.question.goal
    kept = keeps(split, goal)
    ok = np.logical_and.reduce([np.ones(len(split), dtype=bool), *kept.values()])
    data: list[dict[str, Any]] = []
    share = split["p_chips"] / split["chips"]
    for name, mask, colour, width in (
        ("keeps every limit", ok, "var:kv", 3),
        ("any", np.ones(len(split), dtype=bool), "var:overhead", 1.5),
    ):
        x, y = _lowest(share[mask], split, mask)
        if len(x) and not (data and (x, y) == (data[0]["x"], data[0]["y"])):  # nothing the limits exclude
            data.insert(0, {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "line": {"color": colour, "width": width}, "marker": {"size": 5},
                            "hovertemplate": "%{x:.0%} prefill chips: %{y:$.3g}<extra>" + name + "</extra>"})  # fmt: skip
    together = points.pick(points["kind"] == 0)
    notes: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    lines: list[float] = []
    if len(together):
        fine = np.logical_and.reduce([np.ones(len(together), dtype=bool), *keeps(together, goal).values()])
        if fine.any():
            best = float(together["usd_per_mtok"][fine].min())
            lines.append(best)
            shapes.append(
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": best,
                    "y1": best,
                    "line": {"color": "var:links", "width": 1.5, "dash": "dash"},
                }
            )
            notes.append({"xref": "paper", "x": 1, "xanchor": "right", "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 2,
                          "text": f"dashed: together on the same chips, ${best:.3g}", "showarrow": False, "font": {"color": "var:links"}})  # fmt: skip
    if report["choice"]["prefill"]:
        f = report["choice"]["figures"]
        p, d = report["choice"]["prefill"], report["choice"]["decode"]
        mine = p["chips"] * p["instances"] / (p["chips"] * p["instances"] + d["chips"] * d["instances"])
        data.append({"type": "scatter", "mode": "markers", "name": "choice" if report["feasible"] else "closest", "x": [mine], "y": [f["usd_per_mtok"]["middle"]],
                     "marker": {"size": 16, "symbol": "star", "color": "var:accent"}, "hovertemplate": "%{x:.0%}: %{y:$.3g}<extra></extra>"})  # fmt: skip
    ys = [y for item in data for y in item["y"]] + lines
    layout = chart_layout(
        {"title": "prefill chips / all chips", "tickformat": ".0%", "range": [0, 1]},
        log_axis("USD per Mtok written, all in", ys, "$"),
        shapes=shapes,
        annotations=notes,
    )
    layout["margin"]["t"] = 28
    return Chart(
        title=title,
        note="The cheapest separate-pool deployment at each share of prefill chips, over all layouts and batches.",
        figure={"data": data, "layout": layout},
    )


def _lowest(share: Any, split: Points, mask: Any) -> tuple[list[float], list[float]]:
    """Least cost in each of forty bins of share, dear outliers beyond thirty times the least left out."""
    cost = split["usd_per_mtok"][mask]
    if not len(cost):
        return [], []
    bins = np.minimum((share * 40).astype(int), 39)
    xs, ys = [], []
    for b in np.unique(bins):
        rows = np.flatnonzero(bins == b)
        best = rows[np.argmin(cost[rows])]
        if cost[best] <= 30 * cost.min():
            xs.append(float(share[best]))
            ys.append(float(f"{cost[best]:.4g}"))
    return xs, ys
