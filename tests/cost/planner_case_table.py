"""The shared table of worked answers and measurements, and small dense models of its sources that no catalogue needs."""

from __future__ import annotations

import csv
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.catalog.tables import spec_from_table

DATA = Path(os.environ.get("RIDGEPOINT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CASES_FILE = DATA / "planner_cases.csv"
Inputs = dict[str, Any]
needs_table = pytest.mark.skipif(not CASES_FILE.is_file(), reason="no shared measured tables here")


@lru_cache(maxsize=1)
def cases() -> tuple[dict[str, str], ...]:
    if not CASES_FILE.is_file():
        return ()
    with CASES_FILE.open(newline="") as file:
        return tuple(csv.DictReader(file))


def case_of(case_id: str) -> dict[str, str]:
    return next(case for case in cases() if case["case_id"] == case_id)


def inputs_of(case: dict[str, str]) -> Inputs:
    return dict(json.loads(case["inputs"]))


def tolerance_of(case: dict[str, str]) -> float:
    return max(float(case["rel_tol"] or 0.0), 1e-9)


def agrees(got: float, case: dict[str, str]) -> bool:
    return bool(got == pytest.approx(float(case["expected"]), rel=tolerance_of(case)))


def dense_model(
    name: str, *, layers: int, d_model: int, heads: int, vocab: int, kv_heads: int | None = None, ffn: int | None = None, gated: bool = False
) -> ModelSpec:  # fmt: skip
    """A classic block: multi-head attention and a 4x GELU feed-forward, unless said otherwise."""
    row = {
        "family": name, "d_model": d_model, "layers": layers, "vocab": vocab, "tied": not gated, "max_context": 131072, "heads": heads,
        "kv_heads": kv_heads or heads, "head_dim": d_model // heads, "dense_ffn": ffn or 4 * d_model, "qk_norm": "none", "output_gate": "none",
        "activation": "swiglu" if gated else "gelu", "rope_theta": 1e4, "source": "the case's own", "date": "2026-11",
    }  # fmt: skip
    return spec_from_table(name, row)


BLOOM = dense_model("bloom-176b", layers=70, d_model=14336, heads=112, vocab=250880)
LLAMA2 = dense_model("llama2-70b", layers=80, d_model=8192, heads=64, kv_heads=8, vocab=32000, ffn=28672, gated=True)
KIPPLY_13B = dense_model("13b", layers=40, d_model=5120, heads=40, vocab=50257)
