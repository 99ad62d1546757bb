"""The charts of a plan's page as plain plotly descriptions: data and layout, colours named `var:...` for the page to fill in.

Six: cost against batch with the ridge, the cost-latency frontier, the roofline with the operating points, where a step goes, memory
per chip, and the share of prefill chips. A chart with nothing to show says why (`empty`). Reads columns and the report; prices nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgepoint.plan.choose import keeps
from ridgepoint.plan.points import Points, pareto
from ridgepoint.plan.search import Plan

ROOFS = ("compute", "weights", "kv", "links", "overhead")
ROOF_NAMES = {
    "compute": "compute",
    "weights": "weight reads",
    "kv": "KV reads",
    "links": "links",
    "overhead": "fixed overhead",
}
MAX_CLOUD = 2500


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`figure` None: `empty` is shown instead."""

    title: str
    note: str
    figure: dict[str, Any] | None
    empty: str = ""


def charts(plan: Plan, report: dict[str, Any]) -> list[Chart]:
    return [
        _cost_against_batch(report), _frontier(plan, report), _roofline(report), _terms(report), _memory(report), _pool_ratio(plan, report),
    ]  # fmt: skip


def _layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "var:grid", "linecolor": "var:line", "zeroline": False, "ticks": "outside", "tickcolor": "var:line", "automargin": True,
            "title": {"standoff": 8}}  # fmt: skip
    return {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "var:ink", "size": 12.5},
        "margin": {"l": 62, "r": 18, "t": 14, "b": 50}, "hoverlabel": {"bgcolor": "var:card", "bordercolor": "var:line", "font": {"color": "var:ink"}},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 12}}, "xaxis": _merge(axis, x), "yaxis": _merge(axis, y), **more,
    }  # fmt: skip


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    title = {**base["title"], "text": more.pop("title")} if "title" in more else base["title"]
    return {**base, **more, "title": title}


def _log(title: str, values: Any, unit: str = "", **more: Any) -> dict[str, Any]:
    """A log axis over the values' decades, labelled 1-2-5 where there are few decades and by decades where there are many."""
    array = np.asarray([v for v in np.ravel(values) if v is not None and v > 0], dtype=float)
    low, high = float(array.min()), float(array.max())
    span = np.log10(high / low) if high > low else 0.0
    pad = max(0.04 * span, 0.06)
    left, right = np.log10(low) - pad, np.log10(high) + pad
    digits = (1,) if span > 3.2 else ((1, 2, 5) if span > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
    ticks = [d * 10.0**e for e in range(int(np.floor(left)) - 1, int(np.ceil(right)) + 1) for d in digits]
    ticks = [t for t in ticks if left <= np.log10(t) <= right]
    return {
        "type": "log",
        "title": title,
        "range": [left, right],
        "tickvals": ticks,
        "ticktext": [_short(t, unit) for t in ticks],
        **more,
    }


def _short(value: float, unit: str) -> str:
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            text = f"{value / scale:.3g}{prefix}"
            return f"${text}" if unit == "$" else text
    text = f"{value:.3g}"
    return f"${text}" if unit == "$" else text


def _cost_against_batch(report: dict[str, Any]) -> Chart:
    explain = report["explain"]
    curve = explain["curve"]
    batch = [point["batch"] for point in curve]
    cost = [point["estimate_usd_per_mtok"] for point in curve]
    parts = {
        roof: [c * p["roof_s"][roof] / p["estimate_step_s"] for c, p in zip(cost, curve, strict=True)] for roof in ROOFS
    }
    floor = min(cost) / 300
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": ROOF_NAMES[roof], "x": batch, "y": [max(y, floor / 10) for y in parts[roof]],
            "line": {"color": f"var:{roof}", "width": 1.8}, "hovertemplate": "%{y:$.3g} " + ROOF_NAMES[roof] + "<extra></extra>",
        }
        for roof in ROOFS
    ]  # fmt: skip
    data.append(
        {"type": "scatter", "mode": "lines", "name": "total", "x": batch, "y": cost, "line": {"color": "var:ink", "width": 3},
         "hovertemplate": "batch %{x:,.0f}: %{y:$.3g} per Mtok<extra></extra>"}
    )  # fmt: skip
    shapes, notes = [], []
    here = float(report["choice"]["serve"]["max_sequences"])
    marks = [("runs here", here, "var:accent", "solid", 0.97)]
    if explain["ridge_batch"]:
        marks.append(("ridge B*", explain["ridge_batch"], "var:compute", "dash", 0.88))
    full = next((point["batch"] for point in curve if not point["fits"]), None)
    for text, at, colour, dash, height in marks:
        shapes.append(
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": colour, "width": 1.5, "dash": dash},
            }
        )
        right = np.log10(at) < 0.8 * np.log10(max(batch))
        notes.append({"x": float(np.log10(at)), "y": height, "yref": "paper", "text": f"{text}: {at:,.0f}", "showarrow": False,
                      "xanchor": "left" if right else "right", "xshift": 4 if right else -4, "font": {"color": colour}, "bgcolor": "var:card", "borderpad": 1})  # fmt: skip
    if full is not None:
        shapes.append(
            {
                "type": "rect",
                "x0": full,
                "x1": max(batch) * 2,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "fillcolor": "var:faint",
                "line": {"width": 0},
                "layer": "below",
            }
        )
        notes.append(
            {
                "x": float(np.log10(max(batch))),
                "y": 0.03,
                "yref": "paper",
                "text": "beyond memory",
                "showarrow": False,
                "xanchor": "right",
                "font": {"color": "var:soft"},
            }
        )
    layout = _layout(
        _log("sequences per instance (batch)", batch), _log("USD per Mtok of output", [*cost, floor], "$"), shapes=shapes, annotations=notes, hovermode="closest",
    )  # fmt: skip
    note = "Decode on the chosen layout. Left of the ridge every sequence pays for weights nobody shares; right of it, only for arithmetic and its own KV."
    return Chart(title="Cost against batch", note=note, figure={"data": data, "layout": layout})


def _frontier(plan: Plan, report: dict[str, Any]) -> Chart:
    points, goal = plan.points, plan.question.goal
    sensible = points["usd_per_mtok"] <= 60 * points["usd_per_mtok"].min()
    cloud = points.pick(sensible)
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
    for name, deployment, symbol, size in (
        ("choice" if report["feasible"] else "closest", report["choice"], "star", 17),
        ("runner-up", report["runner_up"], "diamond", 11),
    ):
        if deployment:
            f = deployment["figures"]
            data.append(
                {"type": "scatter", "mode": "markers", "name": name, "x": [f["tpot_s"]["middle"] * 1e3], "y": [f["usd_per_mtok"]["middle"]],
                 "marker": {"size": size, "symbol": symbol, "color": "var:accent" if symbol == "star" else "var:card", "line": {"color": "var:accent" if symbol == "diamond" else "var:card", "width": 2 if symbol == "diamond" else 1}},
                 "hovertemplate": f"{name}: {deployment['name']}<br>" + "%{x:.3g} ms, %{y:$.3g}<extra></extra>"}
            )  # fmt: skip
    shapes, notes = [], []
    xs = [float(x) for item in data for x in item["x"] if x is not None]
    ys = [float(y) for item in data for y in item["y"] if y is not None]
    if goal.tpot_s is not None:
        at = goal.tpot_s * 1e3
        xs.append(at)
        shapes.append(
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "var:soft", "width": 1.5, "dash": "dot"},
            }
        )
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
            }
        )
    layout = _layout(
        _log("time per token, ms", xs), _log("USD per Mtok written, all in", ys, "$"), shapes=shapes, annotations=notes
    )
    note = "Each dot is a priced deployment under the load. Faster costs more: the frontier is what speed costs."
    if goal.confidence > 0.5 and goal.tpot_s is not None:
        note += f" The choice keeps left of the limit by the margin that confidence {goal.confidence:g} asks for."
    return Chart(title="Cost against speed", note=note, figure={"data": data, "layout": layout})


def _ms(values: Any) -> list[float]:
    return [float(f"{v * 1e3:.4g}") for v in values]


def _round(values: Any) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def _roofline(report: dict[str, Any]) -> Chart:
    points = report["explain"]["roofline"]
    data: list[dict[str, Any]] = []
    xs = [point["flop_per_byte"] for point in points] + [
        point["spec_peak_flops_per_s"] / point["spec_memory_bytes_per_s"] for point in points
    ]
    low, high = min(xs) / 4, max(xs) * 6
    seen: set[str] = set()
    colours = {"decode": "var:weights", "prefill": "var:compute"}
    chips = list(dict.fromkeys(point["chip"] for point in points))
    notes = []
    for point in points:
        if point["chip"] not in seen:
            seen.add(point["chip"])
            peak, bandwidth = point["spec_peak_flops_per_s"], point["spec_memory_bytes_per_s"]
            ridge = peak / bandwidth
            dash = "solid" if point["chip"] == chips[0] else "dash"
            data.append(
                {"type": "scatter", "mode": "lines", "name": f"{point['chip']} roof", "x": [low, ridge, high], "y": [low * bandwidth, peak, peak],
                 "line": {"color": "var:ink", "width": 2, "dash": dash}, "hovertemplate": "%{x:.3g} FLOP/B: %{y:.3s}FLOP/s<extra>" + point["chip"] + "</extra>"}
            )  # fmt: skip
            notes.append({"x": float(np.log10(ridge)), "y": float(np.log10(peak)), "text": f"ridge {ridge:,.0f} FLOP/B", "showarrow": False,
                          "yanchor": "bottom", "xanchor": "right", "yshift": 3, "font": {"color": "var:soft", "size": 11.5}})  # fmt: skip
        frac = point["estimate_flops_per_s"] / point["spec_roof_flops_per_s"]
        data.append(
            {"type": "scatter", "mode": "markers", "name": f"{point['phase']}: {frac:.0%} of its roof", "x": [point["flop_per_byte"]], "y": [point["estimate_flops_per_s"]],
             "marker": {"size": 13, "color": colours[point["phase"]]}, "hovertemplate": f"{point['phase']} on {point['chip']}<br>" + "%{x:.3g} FLOP/B, %{y:.3s}FLOP/s<extra></extra>"}
        )  # fmt: skip
        data.append(
            {"type": "scatter", "mode": "lines", "showlegend": False, "x": [point["flop_per_byte"]] * 2, "y": [point["estimate_flops_per_s"], point["spec_roof_flops_per_s"]],
             "line": {"color": colours[point["phase"]], "width": 1.5, "dash": "dot"}, "hoverinfo": "skip"}
        )  # fmt: skip
    ys = [y for item in data for y in item["y"]]
    layout = _layout(
        _log("FLOP per byte of memory traffic", [low, high]),
        _log("FLOP/s per chip", [*ys, max(ys) * 1.6]),
        annotations=notes,
    )
    note = "A step's arithmetic per byte it moves, against what the chip could do there (spec_ peaks). The dotted drop is overhead, links and imperfect kernels."
    return Chart(title="Roofline", note=note, figure={"data": data, "layout": layout})


def _terms(report: dict[str, Any]) -> Chart:
    terms = sorted(
        ((name, spent) for name, spent in report["explain"]["term_s"].items() if spent > 0), key=lambda pair: pair[1]
    )
    total = sum(spent for _, spent in terms)
    rest = [(name, spent) for name, spent in terms if spent < 0.004 * total]
    shown = ([("other", sum(s for _, s in rest))] if rest else []) + [pair for pair in terms if pair not in rest]
    data = [
        {"type": "bar", "orientation": "h", "y": [name.replace("_", " ") for name, _ in shown], "x": [spent * 1e3 for _, spent in shown],
         "marker": {"color": "var:weights"}, "text": [f"{spent / total:.0%}" if spent / total >= 0.01 else f"{spent / total:.1%}" for _, spent in shown],
         "textposition": "outside", "cliponaxis": False, "hovertemplate": "%{y}: %{x:.3g} ms<extra></extra>"}
    ]  # fmt: skip
    layout = _layout(
        {"title": "milliseconds of a decode step", "range": [0, shown[-1][1] * 1e3 * 1.14]},
        {"title": "", "ticks": ""},
        showlegend=False,
    )
    layout["margin"]["l"] = 120
    return Chart(title="Where a decode step goes", note=f"{total * 1e3:.3g} ms in all, at the chosen batch: kernels by class, links, and overhead that no roof explains.",
                 figure={"data": data, "layout": layout})  # fmt: skip


def _memory(report: dict[str, Any]) -> Chart:
    explain, choice = report["explain"], report["choice"]
    bars = [
        (
            choice["decode"]["hardware"] + (" decode" if choice["prefill"] else ""),
            explain["memory_bytes"],
            explain["memory_usable_bytes"],
        )
    ]
    if choice["prefill"]:
        bars.insert(
            0,
            (
                choice["prefill"]["hardware"] + " prefill",
                explain["prefill_memory_bytes"],
                explain["prefill_memory_usable_bytes"],
            ),
        )
    names = [name for name, _, _ in bars]
    data: list[dict[str, Any]] = []
    for part, colour in (("weights", "var:weights"), ("kv", "var:kv"), ("activations", "var:compute")):
        sizes = [used.get(part, 0.0) / 1e9 for _, used, _ in bars]
        labels = [
            f"{size:.3g} GB" if size > 0.09 * usable / 1e9 else ""
            for size, (_, _, usable) in zip(sizes, bars, strict=True)
        ]
        data.append(
            {"type": "bar", "orientation": "h", "name": {"kv": "KV"}.get(part, part), "y": names, "x": sizes, "marker": {"color": colour}, "text": labels,
             "textposition": "inside", "insidetextanchor": "middle", "textangle": 0, "textfont": {"color": "var:card"}, "constraintext": "none",
             "hovertemplate": "%{y}: %{x:.3g} GB<extra>" + part + "</extra>"}
        )  # fmt: skip
    free = [max(0.0, usable - sum(used.values())) / 1e9 for _, used, usable in bars]
    data.append(
        {"type": "bar", "orientation": "h", "name": "free", "y": names, "x": free, "marker": {"color": "var:faint"},
         "hovertemplate": "%{y}: %{x:.3g} GB free<extra></extra>"}
    )  # fmt: skip
    layout = _layout({"title": "GB per chip (usable)"}, {"title": "", "ticks": ""}, barmode="stack", bargap=0.45)
    layout["legend"]["traceorder"] = "normal"
    layout["margin"]["l"] = 130
    return Chart(title="Memory per chip", note="Weights are divided by the layout; KV by attention ranks and heads, never by more pipeline stages. 8 % is kept for the runtime.",
                 figure={"data": data, "layout": layout})  # fmt: skip


def _pool_ratio(plan: Plan, report: dict[str, Any]) -> Chart:
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
        if len(x):
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
            notes.append({"xref": "paper", "x": 0.99, "xanchor": "right", "y": float(np.log10(best)), "yanchor": "bottom", "text": f"together on the same chips: ${best:.3g}",
                          "showarrow": False, "font": {"color": "var:links"}, "bgcolor": "var:card"})  # fmt: skip
    if report["choice"]["prefill"]:
        f = report["choice"]["figures"]
        p, d = report["choice"]["prefill"], report["choice"]["decode"]
        mine = p["chips"] * p["instances"] / (p["chips"] * p["instances"] + d["chips"] * d["instances"])
        data.append({"type": "scatter", "mode": "markers", "name": "choice" if report["feasible"] else "closest", "x": [mine], "y": [f["usd_per_mtok"]["middle"]],
                     "marker": {"size": 16, "symbol": "star", "color": "var:accent"}, "hovertemplate": "%{x:.0%}: %{y:$.3g}<extra></extra>"})  # fmt: skip
    ys = [y for item in data for y in item["y"]] + lines
    layout = _layout(
        {"title": "prefill chips / all chips", "tickformat": ".0%", "range": [0, 1]},
        _log("USD per Mtok written, all in", ys, "$"),
        shapes=shapes,
        annotations=notes,
    )
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
