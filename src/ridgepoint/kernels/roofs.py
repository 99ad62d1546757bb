"""The rates that bound a native operator on this machine, measured now, and what one operator moves and computes.

Bytes are those of packed weights as they lie in memory, scales and padding included; which peak an operator runs against
follows from its format and from the bits of its activations.
"""

from __future__ import annotations

import ctypes
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from ridgepoint.kernels import native

_INTEGER = {native.FORMATS[name] for name in ("int8", "int4", "mxfp4")}

# ISAs whose integer products take 16 bits at once; the others take them as two planes of 8: two products for one.
_WHOLE = {"portable", "avx2", "avx512"}


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """Bytes/s read from memory; FLOP/s in registers of each kind of product."""

    read_bytes_per_s: float
    f32_flops_per_s: float
    bf16_flops_per_s: float
    int8_flops_per_s: float
    int16_flops_per_s: float  # integer weights with activations of 16 bits

    def flops_per_s(self, weight: ctypes.Structure) -> float:
        """The peak of products with a packed weight."""
        if weight.format == native.FORMATS["f32"]:
            return self.f32_flops_per_s
        if weight.format not in _INTEGER:
            return self.bf16_flops_per_s
        return self.int8_flops_per_s if weight.activation_bits == 8 else self.int16_flops_per_s

    def best(self, other: Roofs) -> Roofs:
        """The better of each: on shared machines rates change by the minute, and a roof is what the machine can do."""
        theirs = asdict(other)
        return Roofs(**{name: max(rate, theirs[name]) for name, rate in asdict(self).items()})


def measure_roofs(probe_bytes: int = 1 << 28, milliseconds: int = 100) -> Roofs:
    """Rates of all threads of the pool in the ISA in use. Of the memory the usual rate, not the best: it comes in bursts."""
    reads = [native.measure_read_bytes_per_s(probe_bytes, 2) for _ in range(3)]
    integer = native.measure_peak_flops_per_s("int8", milliseconds)
    return Roofs(
        read_bytes_per_s=statistics.median(reads),
        f32_flops_per_s=native.measure_peak_flops_per_s("f32", milliseconds),
        bf16_flops_per_s=native.measure_peak_flops_per_s("bf16", milliseconds),
        int8_flops_per_s=integer,
        int16_flops_per_s=integer if native.isa() in _WHOLE else integer / 2,
    )


def weight_bytes(weight: ctypes.Structure) -> int:
    """Of all matrices of a packed weight."""
    return int(native.library().rp_packed_bytes(ctypes.addressof(weight)))


def weight_at(address: int) -> Any:
    """The packed weight an operator points at."""
    return native.PackedWeight.from_address(address)
