"""What a chart is, and the axes and frames shared by the page's charts: colours by the page's CSS variables, log axes with readable ticks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`figure` None: `empty` is shown instead."""

    title: str
    note: str
    figure: dict[str, Any] | None
    empty: str = ""


def chart_layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
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


def log_axis(title: str, values: Any, unit: str = "", **more: Any) -> dict[str, Any]:
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


def vertical_line(x: float, colour: str, dash: str) -> dict[str, Any]:
    """A shape from the bottom of the frame to its top."""
    return {
        "type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": colour, "width": 1.5, "dash": dash},
    }  # fmt: skip


def _short(value: float, unit: str) -> str:
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            text = f"{value / scale:.3g}{prefix}"
            return f"${text}" if unit == "$" else text
    text = f"{value:.3g}"
    return f"${text}" if unit == "$" else text
