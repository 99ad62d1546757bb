"""From the step law to what users of a busy server see: TPOT, TTFT and throughput of a closed loop of requests.

`concurrency` clients each hold one request of `input_tokens` in and `output_tokens` out and start the next when it ends.
A decode step advances everyone; a prompt's chunk rides on one, and everyone waits for it: per output token that costs
(clients - 1) / output_tokens chunk increments. Two policies bound what engines do: *mixed* lets chunks ride on decode steps as
they come (low TTFT, every decoder pays); *prefill first* drains waiting prompts before decoding on. `Calibration.prefill_first_frac` says
which an engine does. Requests of one length then end together, prompts are drained in waves, and half of the pause moves from TPOT to
TTFT; where lengths differ, prompts come one by one and every decoder waits for all of each: for what it adds to a decode step it rides on,
or for a step of its own, which reads every weight again. More clients than KV memory holds wait for a seat, and that wait is in TTFT. Decode steps replay recorded graphs; steps with a chunk are launched kernel by kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.amounts import TILES, StepAmounts, step_amounts
from ridgepoint.cost.arrays import Num, all_true, largest, smallest
from ridgepoint.cost.batch import StepBatch
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.drafting import Drafter
from ridgepoint.cost.energy import DEFAULT_ENERGY, ENERGY_TYPES, EnergyModel, mean_power_w
from ridgepoint.cost.formats import Precision
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import max_sequences
from ridgepoint.cost.step import Z80, StepCost, price_step
from ridgepoint.errors import ConfigError, PlanError


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """What the clients ask. `prefix_hit_frac` of the input is found cached; `turnover_frac` of requests start together (the
        cold start of a benchmark: 0.1 when each client sends ten requests; 0 for a long-running service), `equal_lengths_frac` are all equally
    long (1 in many benchmarks, 0 in service). Speculation: each step
        verifies `draft_tokens` beside its own and yields `tokens_per_step`. `prompts_per_request` is below 1 where answers share a
        prompt (parallel rollouts)."""

    input_tokens: Num
    output_tokens: Num
    concurrency: Num
    prefix_hit_frac: Num = 0.0
    turnover_frac: Num = 0.0
    equal_lengths_frac: Num = 0.0
    draft_tokens: Num = 0.0
    tokens_per_step: Num = 1.0
    prompts_per_request: Num = 1.0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "concurrency", "tokens_per_step", "prompts_per_request"):
            if not all_true(getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("prefix_hit_frac", "turnover_frac"):
            value = getattr(self, name)
            if not all_true(value >= 0) or not all_true(value <= 1):
                raise ConfigError(f"{name} must lie in [0, 1], got {value!r}")


@dataclass(frozen=True)
class ServingAmounts:
    """Steps of a closed loop, unpriced: decode alone, with one prompt on board, and a full chunk of prompts."""

    workload: ClosedLoop
    running: Num
    decode: StepAmounts
    mixed: StepAmounts
    chunk: StepAmounts
    prompts_per_mixed: Num
    prompts_per_chunk: Num
    alone: StepAmounts  # the prompts of a mixed step without its decoders
    draft: StepAmounts | None  # one pass of the drafter that lies on the model's own layout, if there is one
    steps_per_prompt: (
        Num  # chunks a prompt is cut into; it computes them one after another, whatever other ranks do beside it
    )


@dataclass(frozen=True)
class ServingCost:
    """Means over requests. `running` of `concurrency` requests hold a seat; intervals are 80 %."""

    workload: ClosedLoop
    calibration: Calibration
    running: Num
    estimate_tpot_s: Num
    estimate_ttft_s: Num
    decode: StepCost
    mixed: StepCost

    @property
    def estimate_tokens_per_s(self) -> Num:
        """Output tokens per second of the whole instance."""
        request_s = self.estimate_ttft_s + self.workload.output_tokens * self.estimate_tpot_s
        return self.workload.concurrency * self.workload.output_tokens / request_s

    def busy_amounts(self) -> dict[str, Num]:
        """Whole-instance amounts of one mean token interval: a decode step and its share of prompt steps.

        `bf16_flops` counts FLOPs as bf16's energy equivalents, `memory_bytes` SRAM's bytes as main memory's; `seconds` is the interval those amounts take.
        """
        per_interval = (
            largest(self.running - 1.0, 0.0) / self.workload.output_tokens
        )  # prompts that board during one interval
        chips = self.decode.layout.chips
        scale = {
            kind: self.decode.energy.flop_joules(kind) / self.decode.energy.bf16_j_per_flop for kind in ENERGY_TYPES
        }

        def flops(step: StepCost) -> Num:
            return sum((term.flops * scale[term.flop_type] for term in step.terms if term.flop_type), 0.0)

        def blend(read: Callable[[StepCost], Num]) -> Num:
            alone, extra = read(self.decode), read(self.mixed) - read(self.decode)
            return chips * (alone + largest(per_interval * extra, 0.0))

        return {
            "bf16_flops": blend(flops), "memory_bytes": blend(_memory_equivalent_bytes),
            "link_bytes": blend(lambda step: step.link_bytes), "seconds": self.estimate_tpot_s, "chips": chips,
        }  # fmt: skip

    def estimate_w(self, energy: EnergyModel | None = None, *, seconds: Num | None = None) -> Num:
        """Mean power of all chips while serving this load; `seconds` replaces the estimated interval by a known one."""
        amounts = self.busy_amounts()
        if seconds is not None:
            amounts["seconds"] = seconds
        return mean_power_w(self.decode.hardware, energy or self.decode.energy, **amounts)

    def estimate_j_per_token(self, energy: EnergyModel | None = None) -> Num:
        """Joules per output token, prompts included."""
        return self.estimate_w(energy) * self.estimate_tpot_s / self.running

    def interval(self, name: str) -> tuple[Num, Num]:
        """(low, high) of `estimate_<name>` with 80 % probability."""
        value = getattr(self, "estimate_" + name)
        sigma = self.calibration.ttft_uncertainty if name == "ttft_s" else self.calibration.uncertainty
        low = value * math.exp(-Z80 * sigma)
        return (largest(low, self.decode.floor_s) if name == "tpot_s" else low), value * math.exp(Z80 * sigma)


def _memory_equivalent_bytes(step: StepCost) -> Num:
    per_sram_byte = step.energy.sram_j_per_byte / step.energy.memory_j_per_byte
    return step.memory_bytes - (1.0 - per_sram_byte) * step.sram_bytes


def serving_amounts(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    workload: ClosedLoop,
    *,
    chunk_tokens: Num = 8192.0,
    routing_skew: float = 1.0,
    tiles: tuple[float, float] = TILES,
    drafter: Drafter | None = None,
) -> ServingAmounts:
    """Unpriced steps of the loop. `drafter` is a module of the model's own, which lies on its layout; drafters with a layout of their own are
    priced by `drafting`. `chunk_tokens` caps the prompt tokens of one step. PlanError when the model does not fit."""
    prompt = workload.input_tokens * (1.0 - workload.prefix_hit_frac)
    cached = workload.input_tokens - prompt
    context = workload.input_tokens + 0.5 * workload.output_tokens
    seats = max_sequences(
        spec, precision, layout, hardware, context=context, step_tokens=smallest(chunk_tokens, prompt)
    )
    if all_true(seats < 1):
        raise PlanError(
            f"the model leaves no room for one sequence of {_one(context):.0f} tokens on {layout.describe()} of {hardware.id}",
            hint="more chips, narrower weights or a shorter context",
        )
    running = largest(smallest(workload.concurrency, seats), 1.0)
    decode = StepBatch.decode(running, context, 1.0 + workload.draft_tokens)
    others = StepBatch.decode(largest(running - 1.0, 0.0), context, 1.0 + workload.draft_tokens)
    new = smallest(prompt, chunk_tokens)
    one_token = StepBatch.decode(running, context)
    together = smallest(layout.dp_attention * 1.0, running)  # data-parallel ranks prefill side by side
    fill = largest(chunk_tokens / new, 1.0)
    many = smallest(fill * layout.dp_attention, running)
    # A prompt longer than a chunk meets, on average, half of itself already cached.
    before = cached + 0.5 * (prompt - new)
    boarding = StepBatch.prefill(together, new, before)

    def amounts(batch: StepBatch) -> StepAmounts:
        return step_amounts(spec, layout, precision, batch, routing_skew=routing_skew, tiles=tiles)

    return ServingAmounts(
        workload=workload,
        running=running,
        draft=step_amounts(drafter.spec, layout, precision, one_token, routing_skew=routing_skew, tiles=tiles)
        if drafter
        else None,
        decode=amounts(decode),
        mixed=amounts(others + boarding),
        chunk=amounts(StepBatch.prefill(many, new, before)),
        alone=amounts(boarding),
        prompts_per_mixed=together * new / prompt,
        prompts_per_chunk=many * new / prompt,
        steps_per_prompt=prompt / new,
    )


def _one(value: Num) -> float:
    return float(value if isinstance(value, int | float) else value.flat[0])


def price_serving(
    amounts: ServingAmounts, hardware: Accelerator, calibration: Calibration, *, energy: EnergyModel = DEFAULT_ENERGY
) -> ServingCost:
    load, running = amounts.workload, amounts.running
    decode = price_step(amounts.decode, hardware, calibration, energy=energy)
    mixed = price_step(amounts.mixed, hardware, calibration, energy=energy, graph=False)
    chunk = price_step(amounts.chunk, hardware, calibration, energy=energy, graph=False)
    in_waves = calibration.prefill_first_frac * load.equal_lengths_frac
    prompt_s = (
        _boarding_s(amounts, hardware, calibration, mixed.estimate_s - decode.estimate_s) / amounts.prompts_per_mixed
        + calibration.prompt_overhead_s
    )  # a prompt's cost to the others
    queued_s = (
        chunk.estimate_s / amounts.prompts_per_chunk + calibration.prompt_overhead_s
    )  # a prompt's cost in a full chunk
    pause_s = (1.0 - in_waves) * prompt_s + in_waves * 0.5 * queued_s
    prompts_per_token = load.prompts_per_request / load.output_tokens
    tpot = (decode.estimate_s + _drafting_s(amounts, hardware, calibration)) / load.tokens_per_step + (
        running - 1.0
    ) * prompts_per_token * pause_s
    own_s = mixed.estimate_s * amounts.steps_per_prompt
    bunch = largest(
        calibration.prefill_first_frac * calibration.bunching_frac, load.turnover_frac * calibration.turnover_scale
    )
    queue_s = bunch * 0.5 * (running - 1.0) * queued_s
    seat_s = (load.concurrency / running - 1.0) * load.output_tokens * tpot
    host_s = amounts.mixed.launches * calibration.prefill_host_kernel_s
    waits_s = calibration.boarding_steps * decode.estimate_s  # the step under way, and those the host runs ahead
    ttft = calibration.prefill_slowdown * own_s + waits_s + host_s + calibration.request_overhead_s + queue_s + seat_s
    return ServingCost(load, calibration, running, tpot, ttft, decode, mixed)


def _boarding_s(amounts: ServingAmounts, hardware: Accelerator, calibration: Calibration, added_s: Num) -> Num:
    """How long the prompts of one step keep decoders waiting: `added_s` where they ride on a decode step, all of a step of their own,
    which reads every weight again, where prompts go first."""
    first = calibration.prefill_first_frac
    riding_s = largest(added_s, 0.0)
    if all_true(first == 0):
        return riding_s
    own_s = price_step(amounts.alone, hardware, calibration, graph=False).estimate_s
    return (1.0 - first) * riding_s + first * own_s


def _drafting_s(amounts: ServingAmounts, hardware: Accelerator, calibration: Calibration) -> Num:
    """Before each verification: passes one after another, inside the step that verifies."""
    if amounts.draft is None:
        return 0.0
    inside = calibration.adjusted(step_overhead_s=0.0)
    return amounts.workload.draft_tokens * price_step(amounts.draft, hardware, inside).estimate_s


def closed_loop(
    spec: ModelSpec,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    workload: ClosedLoop,
    calibration: Calibration,
    *,
    chunk_tokens: Num = 8192.0,
    energy: EnergyModel = DEFAULT_ENERGY,
) -> ServingCost:
    """TPOT, TTFT and throughput of `workload` on one instance; all fields may be arrays."""
    amounts = serving_amounts(
        spec,
        hardware,
        layout,
        precision,
        workload,
        chunk_tokens=chunk_tokens,
        routing_skew=calibration.routing_skew,
        tiles=calibration.tiles,
    )
    return price_serving(amounts, hardware, calibration, energy=energy)
