"""The planner's table: one row per priced deployment, one numpy column per fact about it. Concatenate, filter, rank.

A row is a whole deployment under load: how many instances of which layout, and what it then costs and how fast it is.
`kind` 0 serves prompts and answers together; 1 has separate prefill (`p_*`) and decode (`d_*`) pools. `*_memory` is the code of a
layout's residence. Latencies and costs
are middle estimates; `timetable` 1 says steps leave at fixed intervals; `busy_tpot_s` is then the time per token the chips work, elsewhere `tpot_s` itself.
`*_paid` are the chips paid for, idle ones of whole units included; `supply` is chips needed over chips there are, of the scarcer pool; `sigma` and `sigma_ttft` are log-scale uncertainties of the slower side. Knows nothing of how rows came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.errors import PlanError

Column = NDArray[np.float64]

CONFIG = (
    "kind", "d_pool", "d_tp", "d_dp", "d_ep", "d_pp", "d_memory", "d_instances", "p_pool", "p_tp", "p_dp", "p_ep", "p_pp", "p_memory", "p_instances",
    "batch", "chunk", "draft", "timetable",
)  # fmt: skip
METRICS = (
    "chips", "d_chips", "p_chips", "paid_chips", "d_paid", "p_paid", "requests_per_s", "step_s", "draft_s", "interval_s", "worst_wait_s", "tpot_s", "busy_tpot_s", "ttft_s", "ttft_p90_s", "usd_per_hour", "usd_low_frac",
    "usd_high_frac", "usd_per_mtok", "usd_in_per_mtok", "usd_out_per_mtok", "watts", "joules_per_token", "prefill_util", "memory_frac",
    "handoff_s", "supply", "sigma", "sigma_ttft",
)  # fmt: skip
COLUMNS = CONFIG + METRICS


@dataclass(frozen=True)
class Points:
    """`columns` has every name of COLUMNS, all of one length."""

    columns: dict[str, Column]

    def __post_init__(self) -> None:
        assert set(self.columns) == set(COLUMNS), set(COLUMNS) ^ set(self.columns)

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def pick(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Points:
        return Points({name: column[rows] for name, column in self.columns.items()})

    def row(self, index: int) -> dict[str, float]:
        return {name: float(column[index]) for name, column in self.columns.items()}

    def replaced(self, **columns: Column) -> Points:
        return Points({**self.columns, **columns})


def concat(parts: Sequence[Points]) -> Points:
    parts = [part for part in parts if len(part)]
    if not parts:
        raise PlanError(
            "no deployment fits the memory of these chips",
            hint="more chips, chips with more memory, or a narrower precision",
        )
    return Points({name: np.concatenate([part[name] for part in parts]) for name in COLUMNS})


def flatten(shape: tuple[int, ...], keep: NDArray[np.bool_], **columns: Column | float) -> Points:
    """Broadcast every column to `shape` and keep the rows where `keep` holds."""
    mask = np.broadcast_to(keep, shape).ravel()
    filled = {
        name: np.broadcast_to(np.asarray(column, dtype=np.float64), shape).ravel()[mask]
        for name, column in columns.items()
    }
    for name in COLUMNS:
        if name not in filled:
            filled[name] = np.zeros(int(mask.sum()))
    return Points(filled)


def pareto(values: Sequence[Column]) -> NDArray[np.intp]:
    """Indices of the rows no other row beats or equals in every column (smaller is better), best first column first."""
    table = np.stack(values, axis=1)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    kept: list[int] = []
    alive = np.ones(len(table), dtype=bool)
    for index in range(len(table)):
        if not alive[index]:
            continue
        kept.append(index)
        alive[index + 1 :] &= (table[index + 1 :] < table[index]).any(axis=1)
    return order[np.array(kept, dtype=np.intp)]
