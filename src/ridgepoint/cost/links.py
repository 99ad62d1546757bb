"""Bytes that cross wires in a step, the seconds they take by where the peer sits, and how many collectives there are.

Same chip: free. Same scale-up domain: scale-up bandwidth. Beyond it: scale-out bandwidth. All-to-all shares go to every
peer alike, so the part that leaves the domain is (n - d) / n of it; a ring or tree all-reduce moves 2 (n - 1) / n of its
payload per chip. One-way bandwidths per chip throughout.

Sums inside a scale-up domain come in two kinds. Up to `DIRECT_BYTES` engines run kernels of their own, whose threads load from and
store to their peers' memory and wait for one another's flags. They start at once, and move what those threads can have under way:
bytes per second, not a share of the wire, which is twice as fast from one generation to the next while latencies stay. Larger ones go to
a library that streams chunks at most of the wire's rate but takes as long to start. So the first bytes of every sum are dear.
"""

from __future__ import annotations

import math

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.arrays import Num, all_true, largest, smallest, where
from ridgepoint.cost.layout import Layout

# vLLM: `max_size=8192 * 1024` (vllm/distributed/device_communicators/custom_all_reduce.py at 00d618aa), SGLang likewise; TensorRT-LLM:
# 8,000,000 beyond two ranks (`max_workspace_size_auto` of its CustomAllReduceHelper). Read on 2026-11-21.
DIRECT_BYTES = 8.0 * 1024 * 1024


def domain_chips(hardware: Accelerator, layout: Layout) -> int:
    if layout.domain_chips is not None:
        return layout.domain_chips
    return hardware.scaleup_domain_chips or 1


def _bandwidth(hardware: Accelerator, inside: bool) -> float:
    if inside:
        return hardware.need("spec_scaleup_bytes_per_s", "a layout over several chips")
    return hardware.need("spec_scaleout_bytes_per_s", "a layout beyond one scale-up domain")


def _seconds(
    inside_bytes: Num, outside_bytes: Num, hardware: Accelerator, efficiency: float, most_bytes_per_s: Num = math.inf
) -> Num:
    """Both parts at once: the two fabrics are different wires. A bandwidth is asked for only when bytes need it."""
    inside: Num = 0.0
    outside: Num = 0.0
    if not all_true(inside_bytes == 0):
        inside = inside_bytes / smallest(_bandwidth(hardware, True) * efficiency, most_bytes_per_s)
    if not all_true(outside_bytes == 0):
        outside = outside_bytes / (_bandwidth(hardware, False) * efficiency)
    return largest(inside, outside)


def all_reduce(
    payload_bytes: Num, ranks: Num, hardware: Accelerator, layout: Layout, efficiency: float, direct_bytes_per_s: Num
) -> tuple[Num, Num]:
    """(bytes sent per chip, seconds) to sum `payload_bytes` over `ranks` chips: the first `DIRECT_BYTES` at what direct kernels reach.
    A torus has no such kernels: its sums are compiled."""
    direct = 0.0 if hardware.kind == "tpu" else smallest(payload_bytes, DIRECT_BYTES)
    sent, streamed_s = _sum(payload_bytes - direct, ranks, hardware, layout, efficiency)
    first, direct_s = _sum(direct, ranks, hardware, layout, efficiency, direct_bytes_per_s)
    return sent + first, streamed_s + direct_s


def _sum(
    payload_bytes: Num,
    ranks: Num,
    hardware: Accelerator,
    layout: Layout,
    efficiency: float,
    most_bytes_per_s: Num = math.inf,
) -> tuple[Num, Num]:
    """Across domains the slow wires carry one share per domain; inside, no more than `most_bytes_per_s` is under way."""
    near = smallest(ranks, domain_chips(hardware, layout))
    inside = 2.0 * (near - 1) / near * payload_bytes
    # Hierarchical: reduced inside the domain first, each chip then carries its 1/near slice across.
    outside = where(ranks > near, 2.0 * payload_bytes / near, 0.0)
    return inside + outside, _seconds(inside, outside, hardware, efficiency, most_bytes_per_s)


def all_to_all(
    sent_bytes: Num, ranks: Num, hardware: Accelerator, layout: Layout, efficiency: float
) -> tuple[Num, Num]:
    """(bytes off the chip, seconds) when each chip spreads `sent_bytes` evenly over `ranks` chips, itself included."""
    domain = domain_chips(hardware, layout)
    near = smallest(ranks, domain)
    inside = sent_bytes * (near - 1) / ranks
    outside = sent_bytes * (ranks - near) / ranks
    return inside + outside, _seconds(inside, outside, hardware, efficiency)


def hop(payload_bytes: Num, chips_before: Num, hardware: Accelerator, layout: Layout, efficiency: float) -> Num:
    """Seconds for one pipeline boundary: inside the domain while all stages fit in it, else over scale-out."""
    fits = chips_before <= domain_chips(hardware, layout)
    return _seconds(where(fits, payload_bytes, 0.0), where(fits, 0.0, payload_bytes), hardware, efficiency)


def kv_handoff_s(kv_bytes: Num, hardware: Accelerator, *, inside_domain: bool, efficiency: float = 1.0) -> Num:
    """Seconds to move a finished prompt's KV from a prefill chip to a decode chip."""
    return kv_bytes / (_bandwidth(hardware, inside_domain) * efficiency)
