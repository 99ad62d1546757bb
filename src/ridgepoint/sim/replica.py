"""A replica that exists on paper, as the scheduler sees it: what its memory leaves for KV, in blocks, and which of them it may reuse."""

from __future__ import annotations

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.lifting import lift_runs
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import max_sequences
from ridgepoint.errors import PlanError
from ridgepoint.sched.scheduler import Limits

BLOCK_TOKENS = 16
TYPICAL_CONTEXT = 4096  # at which a sequence's KV is priced: windows and states make it less than proportional


def replica_limits(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    *,
    max_num_seqs: int,
    max_waiting: int,
    max_step_tokens: int,
    step_budget_s: float | None,
) -> Limits:
    """Raises `PlanError` when the weights leave no room."""
    context = min(TYPICAL_CONTEXT, spec.max_context)
    sequences = max_sequences(spec, precision, layout, hardware, context=context, step_tokens=max_step_tokens)
    num_blocks = int(float(sequences) * context) // BLOCK_TOKENS
    if num_blocks < 1:
        raise PlanError(
            f"the weights leave no memory for KV on {layout.chips} x {hardware.id}", hint="more chips or fewer bits"
        )
    return Limits(
        num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_num_seqs=max_num_seqs,
        max_step_tokens=max_step_tokens, max_context=spec.max_context, max_waiting=max_waiting,
        step_budget_s=step_budget_s,
    )  # fmt: skip


def whole_runs(spec: ModelSpec, hardware: Accelerator) -> tuple[int, ...]:
    """`Request.whole_runs` of a server on such a chip: CPUs lift latents, whose reuse then depends on where a prompt ends."""
    return lift_runs(spec) if hardware.kind == "cpu" else ()
