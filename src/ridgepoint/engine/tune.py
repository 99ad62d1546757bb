"""Tuned configurations at start: the ones that were saved are loaded, the missing ones tried while the budget lasts, and saved.

A table that no longer holds, or cannot be read, is told in one line and made again. What was not reached keeps the shipped
choice or the kernel's estimate, and is tried at the next start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ridgepoint.engine.startup import Startup
from ridgepoint.kernels import tuning
from ridgepoint.kernels.tuning.tuner import Measure, Problem, tune


def tuned_at_start(
    problems: Sequence[Problem],
    device: torch.device,
    *,
    budget_s: float,
    announce: Callable[[str], None],
    startup: Startup,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Leave the tables such that `tuning.choose` finds all that is known about `problems`, and count in `startup`."""
    hardware = tuning.hardware_name(device)
    known = tuning.load_tables(hardware)
    if known.note is not None:
        announce(known.note)
    saved = {choice.key: choice for choice in known.measured}
    missing = [problem for problem in problems if problem.key not in saved]
    outcome = tune(missing, measure=measure, clock=clock, budget_s=budget_s, announce=announce)
    startup.configurations = {
        "loaded": len(problems) - len(missing), "tuned": len(outcome.choices), "left": outcome.num_left,
    }  # fmt: skip
    if outcome.num_left:
        announce(
            f"tuning has had its {budget_s:g} s: {outcome.num_left} kernel choices stay as shipped until the next start"
        )
    if not outcome.choices:
        return
    path = tuning.user_table(hardware)
    try:
        tuning.write_table(path, hardware, [*(saved | {choice.key: choice for choice in outcome.choices}).values()])
    except OSError as error:
        announce(f"tuned table {path} cannot be written, so the next start tunes again: {error}")
        return
    tuning.forget()
    announce(f"tuned {len(outcome.choices)} kernel choices in {outcome.seconds:.1f} s, kept in {path}")
