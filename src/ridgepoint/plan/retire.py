"""How long does an old accelerator stay worth its power as a prefill chip?

Prefill wants FLOP/s and little memory bandwidth, so an owned, paid-off chip competes by its power and hosting alone against the
full cost of a new one, whose FLOP per dollar grows every year. The year the two meet is when to switch it off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ridgepoint.errors import PlanError
from ridgepoint.plan.assume import Assumption, Inference, infer
from ridgepoint.plan.pools import Pool
from ridgepoint.plan.search import Question
from ridgepoint.plan.sides import sweep_prefill
from ridgepoint.plan.sweep import lay_out


@dataclass(frozen=True, kw_only=True)
class PrefillRate:
    """Best prompt tokens per second and chip of a pool, and the all-in watts a chip draws for them."""

    chip: str
    launch_year: int | None
    tokens_per_s: float
    watts: float


@dataclass(frozen=True, kw_only=True)
class Retirement:
    """`years` from now until the old chip's power costs more than a new chip's everything; already past when it is 0."""

    old: PrefillRate
    new: PrefillRate
    old_usd_per_mtok: Inference
    new_usd_per_mtok: Inference
    years: Inference


ASSUMPTIONS = (
    Assumption(name="usd_per_kwh", low=0.05, high=0.15, unit="USD/kWh", why="industrial electricity to retail hosting"),
    Assumption(name="pue", low=1.1, high=1.5, unit="ratio", why="cooling and conversion, new hall to old"),
    Assumption(name="host_w_frac", low=1.2, high=1.8, unit="ratio", why="host, network and fans over the accelerator's own watts"),
    Assumption(name="space_usd_per_kw_month", low=40.0, high=130.0, unit="USD/kW/month", why="colocation beyond the electricity itself"),
    Assumption(name="yearly_flops_per_usd", low=1.2, high=1.5, unit="x per year",
               why="FLOP per dollar of the newest accelerators has grown about 1.3 to 1.4 x a year since 2006"),
)  # fmt: skip


def best_prefill(question: Question, pool: Pool) -> PrefillRate:
    """Over all layouts that hold the model, at full load."""
    side = lay_out(question.model.spec, pool, question.workload, question.goal, role="prefill")
    rows = sweep_prefill(side, 0, question.workload) if len(side.degrees) else None
    if rows is None or not len(rows.service_s):
        raise PlanError(
            f"{question.model.name} does not fit {pool.describe()} for prefill", hint="give the pool more chips"
        )
    prompt = question.workload.new_input_tokens * question.workload.rollouts
    rate = prompt * rows.ranks / rows.service_s / rows.degrees.chips
    best = int(np.argmax(rate))
    watts = float(rows.joules[best] / prompt * rate[best])
    return PrefillRate(
        chip=pool.chip.id, launch_year=pool.chip.launch_year, tokens_per_s=float(rate[best]), watts=watts
    )


def retirement(question: Question, old_pool: Pool, new_pool: Pool) -> Retirement:
    old, new = best_prefill(question, old_pool), best_prefill(question, new_pool)
    if math.isnan(old.watts):
        raise PlanError(
            f"{old.chip}: its power is unknown, so its worth is too", hint="state tdp_w in a hardware TOML file"
        )
    low, _, high = new_pool.usd_per_hour
    rent = Assumption(name="new_usd_per_hour", low=low, high=high, unit="USD/h", why=f"catalogue rent of {new.chip}")
    power = ASSUMPTIONS[:4]

    def running(
        usd_per_kwh: np.ndarray, pue: np.ndarray, host_w_frac: np.ndarray, space_usd_per_kw_month: np.ndarray
    ) -> np.ndarray:
        kw = old.watts * host_w_frac / 1000
        usd_per_hour = kw * (usd_per_kwh * pue + space_usd_per_kw_month / 730)
        return np.asarray(usd_per_hour / 3600 / old.tokens_per_s * 1e6)

    def renting(new_usd_per_hour: np.ndarray) -> np.ndarray:
        return np.asarray(new_usd_per_hour / 3600 / new.tokens_per_s * 1e6)

    def years(new_usd_per_hour: np.ndarray, yearly_flops_per_usd: np.ndarray, **cost: np.ndarray) -> np.ndarray:
        ratio = renting(new_usd_per_hour) / running(**cost)
        return np.maximum(0.0, np.log(ratio) / np.log(yearly_flops_per_usd))

    reason = f"{old.chip} does {old.tokens_per_s:,.0f} prompt tokens/s a chip at {old.watts:.0f} W; {new.chip} does {new.tokens_per_s:,.0f}."
    return Retirement(
        old=old,
        new=new,
        old_usd_per_mtok=infer("old chip, running cost only", "USD/Mtok in", "kW x (USD/kWh x PUE + space) / tokens per hour", reason, power, running),
        new_usd_per_mtok=infer("new chip, full rent", "USD/Mtok in", "rent / tokens per hour", reason, [rent], renting),
        years=infer(
            "years the old chip stays worth its power", "years", "ln(new full cost / old running cost) / ln(yearly FLOP per USD)",
            reason + " The new chip's cost per token falls every year; the old chip's stays.", [*power, rent, ASSUMPTIONS[4]], years,
        ),
    )  # fmt: skip
