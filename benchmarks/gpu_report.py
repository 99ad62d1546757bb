"""What a section of the GPU suite found, beside what was foreseen and what must hold: collected, judged, printed."""

from __future__ import annotations

import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

EXPECTED = Path(__file__).with_name("gpu_expected.toml")


@dataclass(kw_only=True)
class Figure:
    """One number. `facts` are what it was computed from and under which conditions."""

    section: str
    name: str
    value: float
    unit: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Run:
    """One section at work: where, how long, and what it has found. `rates` are this run's measured ceilings, `part` is what of a
    section in parts this process does (None: all)."""

    section: str
    device: torch.device
    smoke: bool
    budget_s: float
    out: Path
    rates: dict[str, float]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    part: str | None = None
    log: Callable[[str], None] = print
    save: Callable[[Run], None] = lambda run: None  # after every figure, so that an end by force loses none

    def figure(self, name: str, value: float, unit: str, *, section: str | None = None, **facts: Any) -> None:
        """`section` is another one's name when this one finds its figure on the way."""
        figure = Figure(section=section or self.section, name=name, value=float(value), unit=unit, facts=facts)
        self.figures.append(figure)
        self.save(self)
        self.log(f"{figure.section}.{name} = {value:.4g} {unit}")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.save(self)
        self.log(f"{self.section}: {text}")

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """What fails inside is told, fails the section at its end, and leaves the rest of it to run."""
        try:
            yield
        except Exception as failure:
            traceback.print_exc()
            self.failures.append(f"{what}: {type(failure).__name__}: {failure}")
            self.note(f"FAILED {self.failures[-1]}")

    def floor_s(self, flops: float, num_bytes: float, kind: str = "bf16") -> float:
        """The larger of arithmetic and memory time at this run's rates."""
        return max(flops / self.rates[f"{kind}_flops_per_s"], num_bytes / self.rates["memory_bytes_per_s"])

    def result(self, seconds: float) -> dict[str, Any]:
        return {
            "section": self.section, "seconds": seconds, "figures": [asdict(figure) for figure in self.figures],
            "notes": self.notes,
        }  # fmt: skip


def expected_figures(path: Path = EXPECTED) -> dict[tuple[str, str], dict[str, Any]]:
    """What was foreseen, by section and name."""
    tables = tomllib.loads(path.read_text())
    return {(section, name): entry for section, table in tables.items() for name, entry in table.items()}


def verdict(value: float, entry: dict[str, Any] | None) -> str:
    """ "met" or "missed" where there is a goal, else nothing."""
    if entry is None or "goal" not in entry:
        return ""
    met = value >= entry["goal"] if entry["better"] == "higher" else value <= entry["goal"]
    return "met" if met else "missed"


def judged(results: list[dict[str, Any]], expected: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every figure measured, then one for every figure foreseen that no section brought."""
    rows, seen = [], set()
    for result in results:
        for figure in result.get("figures", []):
            key = (figure["section"], figure["name"])
            seen.add(key)
            entry = expected.get(key)
            rows.append(
                {
                    **figure, "expected": entry and entry["expected"], "goal": entry and entry.get("goal"),
                    "better": entry and entry["better"], "verdict": verdict(figure["value"], entry),
                }
            )  # fmt: skip
    for (section, name), entry in expected.items():
        if (section, name) not in seen:
            rows.append(
                {
                    "section": section, "name": name, "value": None, "unit": entry.get("unit", ""), "facts": {},
                    "expected": entry["expected"], "goal": entry.get("goal"), "better": entry["better"], "verdict": "absent",
                }
            )  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader, one line each."""
    head = f"{'figure':44} {'measured':>12} {'expected':>12} {'goal':>14}  unit     verdict"
    return "\n".join([head, *map(line_of, rows)])


def line_of(row: dict[str, Any]) -> str:
    goal = "" if row["goal"] is None else f"{'>=' if row['better'] == 'higher' else '<='} {row['goal']:.4g}"
    name = f"{row['section']}.{row['name']}"
    return f"{name:44} {_number(row['value']):>12} {_number(row['expected']):>12} {goal:>14}  {row['unit']:8} {row['verdict']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
