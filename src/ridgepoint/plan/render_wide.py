"""The wider view of a plan as terminal text: a step term by term, roofs by batch, the rack boundary, pipelines, old chips."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ridgepoint.units import seconds, si, usd

EXPLAIN_WIDTH = 96  # columns that the table of roofs fills


def titled_table(title: str) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")


def why(report: dict[str, Any], *, narrow: bool) -> Group:
    """`narrow` says the same in 80 columns."""
    explain = report["explain"]
    terms = titled_table("a decode step, term by term")
    terms.add_column("term")
    terms.add_column("seconds", justify="right")
    terms.add_column("share", justify="right")
    total = sum(explain["term_s"].values())
    for name, spent in sorted(explain["term_s"].items(), key=lambda pair: -pair[1]):
        if spent > 0:
            terms.add_row(name, seconds(spent), f"{spent / total:.1%}")
    curve = titled_table("which roof binds at each batch (decode, this layout)")
    if narrow:
        curve.padding = (0, 1, 0, 0)
    for name in ("batch", "step", "binds", "USD/Mtok out", "compute", "weights", "kv", "links", "overhead", ""):
        curve.add_column(name, justify="right", no_wrap=not name.startswith("USD"))
    for point in explain["curve"][::2]:
        shares = [
            f"{point['roof_s'][name] / point['estimate_step_s']:.0%}"
            for name in ("compute", "weights", "kv", "links", "overhead")
        ]
        curve.add_row(
            f"{point['batch']:,.0f}", seconds(point["estimate_step_s"]), point["binds"], usd(point["estimate_usd_per_mtok"]), *shares,
            "" if point["fits"] else "no room" if narrow else "beyond memory",
        )  # fmt: skip
    return Group(terms, Text(""), curve, Text(""))


def wide_lines(report: dict[str, Any]) -> list[str]:
    wide = report.get("wide")
    if not wide:
        return []
    lines = []
    for item in wide["rack_boundary"]:
        lines.append(
            f"across the domain of {item['domain_chips']} chips at batch {item['batch']:,.0f}: EP over {item['ep_chips']} chips takes {seconds(item['ep_step_s'])} a step "
            f"({seconds(item['ep_link_s'])} on links), EP inside and PP across {seconds(item['pp_step_s'])} ({seconds(item['pp_link_s'])} on links): {item['winner']} wins"
        )
    if wide["rack_boundary"]:
        lines.append(
            "  EP sends each token K times per layer over the slow wires; PP sends it once per boundary, but reads the experts once per micro-batch"
        )
    first = wide["pipeline_kv"][0]
    for item in wide["pipeline_kv"]:
        lines.append(
            f"pp{item['pp']}: {si(item['weight_bytes_per_chip'], 'B')} of weights and {si(item['kv_bytes_per_chip'], 'B')} of KV per chip with {item['sequences']:,.0f} sequences in flight"
        )
    lines.append(
        f"  more stages do not shrink KV: each holds 1/pp of the layers of pp times as many sequences ({si(first['kv_bytes_per_chip'], 'B')} throughout)"
    )
    for item in wide["retirement"]:
        lines += _retirement_lines(item)
    return lines


def _retirement_lines(item: dict[str, Any]) -> list[str]:
    years, old, new = item["years"], item["old_usd_per_mtok"], item["new_usd_per_mtok"]
    lines = [
        f"{item['old']['chip']} as a prefill chip stays worth its power for {years['middle']:.1f} years ({years['low']:.1f} to {years['high']:.1f}): "
        f"${old['middle']:.3g} per Mtok of power and space against ${new['middle']:.3g} for {item['new']['chip']} in full"
    ]
    lines.append(f"  {years['reasoning']}")
    for assumption in years["assumptions"]:
        lines.append(
            f"  {assumption['name']} = {assumption['low']:.3g} to {assumption['high']:.3g} {assumption['unit']}: {assumption['why']}"
        )
    return lines
