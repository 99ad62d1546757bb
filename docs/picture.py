"""Draw docs/throughput.svg from the stored result of benchmarks/serve_throughput.py: each engine's share of the roof.

    python docs/picture.py

Light and dark in one file: the SVG carries its own media query. Numbers are those of the JSON, nothing is smoothed.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serve_throughput.json"
PICTURE = ROOT / "docs" / "throughput.svg"

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 350, 56, 78, 62
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2430 }
.small { font-size: 11px; fill: #5b6270 }
.grid { stroke: #d9dce3 } .roof { stroke: #1f2430; stroke-dasharray: 5 4 }
.s0 { fill: #c8501e } .s1 { fill: #8a94a6 } .s2 { fill: #4f7cac } .s3 { fill: #b9a44c }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8ee } .small { fill: #a3abba } .grid { stroke: #3a404d } .roof { stroke: #e6e8ee }
  .s0 { fill: #f08a4b } .s1 { fill: #7d8798 } .s2 { fill: #7fa9d6 } .s3 { fill: #d8c56a }
}
"""


def shares(result: dict) -> dict[str, dict[str, float]]:
    """Median tokens/s over the roof, by engine and point."""
    roof = result["roof_tokens_per_s"]
    return {
        engine: {point: statistics.median(rates) / roof[point] for point, rates in points.items()}
        for engine, points in result["tokens_per_s"].items()
    }


def draw(result: dict) -> str:
    by_engine = shares(result)
    engines, points = list(by_engine), list(result["roof_tokens_per_s"])
    top = max(1.0, *(share for row in by_engine.values() for share in row.values()))
    plot_height, plot_width = HEIGHT - TOP - BOTTOM, WIDTH - LEFT - 16
    slot = plot_width / len(points)
    bar = min(34.0, slot * 0.8 / len(engines))

    def y(share: float) -> float:
        return TOP + plot_height * (1 - share / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="Share of the machine\'s roof reached by each engine"><style>{STYLE}</style>'
    ]
    for i, engine in enumerate(engines):
        parts.append(f'<rect class="s{i}" x="{LEFT + i * 150}" y="14" width="13" height="13" rx="2"/>')
        parts.append(f'<text x="{LEFT + 19 + i * 150}" y="25">{engine}</text>')
    parts.append(
        f'<text class="small" x="{LEFT}" y="46">share of the roof measured in the same run (tokens/s above each bar)</text>'
    )
    for percent in range(0, 101, 25):
        at = y(percent / 100)
        kind = "roof" if percent == 100 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - 16}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{percent} %</text>')
    for p, point in enumerate(points):
        middle = LEFT + slot * (p + 0.5)
        for i, engine in enumerate(engines):
            share = by_engine[engine][point]
            rate = statistics.median(result["tokens_per_s"][engine][point])
            x = middle + (i - len(engines) / 2) * bar
            height = HEIGHT - BOTTOM - y(share)
            parts.append(
                f'<rect class="s{i}" x="{x + 1:.1f}" y="{y(share):.1f}" width="{bar - 2:.1f}" height="{height:.1f}" rx="2"/>'
            )
            parts.append(
                f'<text class="small" x="{x + bar / 2:.1f}" y="{y(share) - 4:.1f}" text-anchor="middle">{rate:,.0f}</text>'
            )
        kind, size = point.split()
        label = f"batch {size}" if kind == "decode" else f"prompt {size}"
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>')
    roof = result["machine_roof"]
    reads = [read / 1e9 for rounds in result["measure_read_bytes_per_s"].values() for read in rounds]
    conditions = [
        f"Random Qwen3-MoE, 1.3 B parameters, 0.23 B active, bf16, context 128; {result['threads']} threads of"
        f" {result['hardware']['cpu'].split(' (')[0]}",
        f"Roof: memory {min(reads):.0f} to {max(reads):.0f} GB/s around the points,"
        f" {roof['bf16_flops_per_s'] / 1e9:,.0f} GFLOP/s"
        + ("; it reads bf16 at two bytes a weight, ridgepoint the same weights in 12 bits" if top > 1 else ""),
    ]
    for line, condition in enumerate(conditions):
        parts.append(f'<text class="small" x="{LEFT}" y="{HEIGHT - 20 + 15 * line}">{condition}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PICTURE.write_text(draw(json.loads(RESULT.read_text())))
    print(PICTURE.relative_to(ROOT))
