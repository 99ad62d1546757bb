"""The charts of a plan's page as plain plotly descriptions: data and layout, colours named `var:...` for the page to fill in.

Six: cost against batch with the ridge, the cost-latency frontier, the roofline with the operating points, where a step goes, memory
per chip, and the share of prefill chips. A chart with nothing to show says why (`empty`). Reads columns and the report; prices nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgepoint.plan.chart_axes import Chart, chart_layout, log_axis, vertical_line
from ridgepoint.plan.chart_clouds import frontier_chart, pool_ratio_chart
from ridgepoint.plan.search import Plan

ROOFS = ("compute", "weights", "kv", "links", "overhead")
ROOF_NAMES = {
    "compute": "compute",
    "weights": "weight reads",
    "kv": "KV reads",
    "links": "links",
    "overhead": "fixed overhead",
}


def charts(plan: Plan, report: dict[str, Any]) -> list[Chart]:
    return [
        _cost_against_batch(report), frontier_chart(plan, report), _roofline(report), _terms(report), _memory(report), pool_ratio_chart(plan, report),
    ]  # fmt: skip


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
    marks = [("runs here", here, "var:accent", "solid", 2)]
    if explain["ridge_batch"]:
        marks.append(("ridge B*", explain["ridge_batch"], "var:compute", "dash", 18))
    full = next((point["batch"] for point in curve if not point["fits"]), None)
    for text, at, colour, dash, lift in marks:
        shapes.append(vertical_line(at, colour, dash))
        right = np.log10(at) < 0.8 * np.log10(max(batch))
        notes.append({"x": float(np.log10(at)), "y": 1, "yref": "paper", "yanchor": "bottom", "yshift": lift, "text": f"{text}: {at:,.0f}", "showarrow": False,
                      "xanchor": "left" if right else "right", "xshift": -3 if right else 3, "font": {"color": colour}})  # fmt: skip
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
                "bgcolor": "var:card",
            }
        )
    layout = chart_layout(
        log_axis("sequences per instance (batch)", batch), log_axis("USD per Mtok of output", [*cost, floor], "$"), shapes=shapes, annotations=notes, hovermode="closest",
    )  # fmt: skip
    layout["margin"]["t"] = 40
    note = "Decode on the chosen layout. Left of the ridge every sequence pays for weights nobody shares; right of it, only for arithmetic and its own KV."
    return Chart(title="Cost against batch", note=note, figure={"data": data, "layout": layout})


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
                          "yanchor": "bottom", "xanchor": "left", "yshift": 3, "font": {"color": "var:soft", "size": 11.5}})  # fmt: skip
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
    layout = chart_layout(
        log_axis("FLOP per byte of memory traffic", [low, high]),
        log_axis("FLOP/s per chip", [*ys, max(ys) * 1.6]),
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
    shown = ([("other", sum(s for _, s in rest))] if sum(s for _, s in rest) > 5e-4 * total else []) + [
        pair for pair in terms if pair not in rest
    ]
    data = [
        {"type": "bar", "orientation": "h", "y": [name.replace("_", " ") for name, _ in shown], "x": [spent * 1e3 for _, spent in shown],
         "marker": {"color": "var:weights"}, "text": [f"{spent / total:.0%}" if spent / total >= 0.01 else f"{spent / total:.1%}" for _, spent in shown],
         "textposition": "outside", "cliponaxis": False, "hovertemplate": "%{y}: %{x:.3g} ms<extra></extra>"}
    ]  # fmt: skip
    layout = chart_layout(
        {"title": "milliseconds of a decode step", "range": [0, shown[-1][1] * 1e3 * 1.14]},
        {"title": "", "ticks": ""},
        showlegend=False,
    )
    layout["margin"]["l"] = 120
    return Chart(title="Where a decode step goes", note=f"{total * 1e3:.3g} ms in all, at the chosen batch: kernels by class, links, and overhead that no roof explains.",
                 figure={"data": data, "layout": layout})  # fmt: skip


def _memory(report: dict[str, Any]) -> Chart:
    explain, choice = report["explain"], report["choice"]
    name = choice["decode"]["hardware"] + (" decode" if choice["prefill"] else "")
    bars = [(name, explain["memory_bytes"], explain["memory_usable_bytes"])]
    if choice["decode"]["sram"] and not choice["decode"]["kv_in_sram"]:
        kv = explain["memory_bytes"]["kv"]
        rest = {part: size for part, size in explain["memory_bytes"].items() if part != "kv"}
        bars = [
            (f"{name} SRAM", rest, explain["memory_usable_bytes"]),
            (f"{name} main memory", {"kv": kv}, explain["kv_memory_usable_bytes"]),
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
    for part, colour in (
        ("weights", "var:weights"),
        ("kv", "var:kv"),
        ("activations", "var:compute"),
        ("drafter", "var:links"),
    ):
        sizes = [used.get(part, 0.0) / 1e9 for _, used, _ in bars]
        if not any(sizes):
            continue
        labels = [
            f"{size:.3g} GB" if size > 0.13 * usable / 1e9 else ""
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
    layout = chart_layout({"title": "GB per chip (usable)"}, {"title": "", "ticks": ""}, barmode="stack", bargap=0.45)
    layout["legend"]["traceorder"] = "normal"
    layout["margin"]["l"] = 130
    return Chart(title="Memory per chip", note="Weights are divided by the layout; KV by attention ranks and heads, never by more pipeline stages. 8 % is kept for the runtime.",
                 figure={"data": data, "layout": layout})  # fmt: skip
