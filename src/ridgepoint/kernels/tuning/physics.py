"""What a configuration asks of a GPU's multiprocessors, and about how long it should take: arithmetic that thins out a list of
candidates before any of them is compiled or timed.

The estimate knows waves of programs, the bytes they keep on their way, and the roofs of memory, L2
cache and arithmetic. It knows nothing of instructions, so
it ranks coarsely: what it leaves is still measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ridgepoint.kernels.triton_call import INTERPRETED, num_multiprocessors

LATENCY_S = 1.0e-6  # from a load to its data under full load
FEEDING = 1.5  # what covers the latency exactly feeds 78 % of a multiprocessor's share of memory, twice that 95 %: no schedule is even
SPREAD = 1.35  # a candidate slower than the best by more than this by estimate is not timed
ADDRESSES = 80  # registers of a thread, beside its share of accumulators: addresses, masks, loop counters
MOST_REGISTERS = 255

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """One GPU, as far as launches are concerned. Rates are those of its data sheet's class; only their ratio matters here."""

    count: int
    shared_bytes: int  # that programs of one multiprocessor have together
    registers: int  # 65536 since 2012
    threads: int
    bytes_per_s: float
    l2_bytes_per_s: float
    flops_per_s: float


HOPPER = Processor(
    count=132, shared_bytes=227 * 1024, registers=65536, threads=2048, bytes_per_s=4.3e12, l2_bytes_per_s=6.65e12,
    flops_per_s=780e12,
)  # fmt: skip


def processor_of(device: torch.device) -> Processor:
    """The GPU at hand; Hopper's shape under the interpreter."""
    if INTERPRETED.value or device.type != "cuda":
        return HOPPER
    found = torch.cuda.get_device_properties(device)
    return Processor(
        count=num_multiprocessors(device), shared_bytes=found.shared_memory_per_multiprocessor - 1024,
        registers=HOPPER.registers, threads=found.max_threads_per_multi_processor,
        bytes_per_s=HOPPER.bytes_per_s, l2_bytes_per_s=HOPPER.l2_bytes_per_s, flops_per_s=HOPPER.flops_per_s,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Of one candidate. A program is one of `per_processor` on each multiprocessor; an item is what it does at a time."""

    warps: int
    per_processor: int
    shared_bytes: int
    accumulators: int  # float32 numbers that a program's threads hold together
    items: float
    item_bytes: float  # from memory
    item_flops: float
    in_flight_bytes: int  # of a program, while its loads are as far ahead as they get
    item_l2_bytes: float = 0.0  # from the L2 cache, those from memory among them
    addresses: int = ADDRESSES
    more_bytes: float = 0.0  # written and read again beside the items: partial results


def fits(demand: Demand, processor: Processor) -> bool:
    """Whether that many programs share a multiprocessor, with registers enough not to spill."""
    threads = 32 * demand.warps
    registers = demand.accumulators / threads + demand.addresses
    together = demand.per_processor
    return (
        together * demand.shared_bytes <= processor.shared_bytes
        and together * threads <= processor.threads
        and registers <= MOST_REGISTERS
        and together * threads * registers <= processor.registers
    )


def estimate_s(demand: Demand, processor: Processor) -> float:
    """Rounds of programs, each as long as the slowest of its shares of memory, cache and arithmetic."""
    beside = min(
        demand.per_processor, max(1, math.ceil(demand.items / processor.count))
    )  # with few items fewer have work
    programs = processor.count * beside
    rounds = math.ceil(demand.items / programs)
    busy = demand.items / (rounds * programs)  # in the last round some have nothing to do
    wanted_bytes = processor.bytes_per_s / processor.count * LATENCY_S  # on their way to a multiprocessor
    fed = 1 - math.exp(-FEEDING * demand.in_flight_bytes * beside / wanted_bytes)
    moved_s = demand.items * demand.item_bytes / (processor.bytes_per_s * fed)
    computed_s = demand.items * demand.item_flops / processor.flops_per_s
    cached_s = demand.items * demand.item_l2_bytes / processor.l2_bytes_per_s
    return max(moved_s, cached_s, computed_s) / busy + demand.more_bytes / processor.bytes_per_s


def worth_timing(
    candidates: Sequence[C], demand_of: Callable[[C], Demand], processor: Processor, most: int, first: C | None = None
) -> list[C]:
    """Those that fit, the best `most` by estimate and none far behind; `first`, if there is one, is kept and leads."""
    ranked = sorted(
        ((estimate_s(demand_of(c), processor), place) for place, c in enumerate(candidates) if fits(demand_of(c), processor))
    )  # fmt: skip
    kept = [
        candidates[place]
        for seconds, place in ranked
        if seconds <= SPREAD * ranked[0][0] and candidates[place] != first
    ]
    return [*([first] if first is not None else []), *kept][:most]
