"""How many tokens a step holds where nobody says: enough of a prompt that reading the weights hides behind arithmetic, and no
more, because everybody who reads along waits for the step.

With the native kernels the ridge is computed from rates measured at the start; elsewhere the number is the usual one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ridgepoint.cost.ridge import ridge_tokens
from ridgepoint.engine.prediction import precision_of
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import Packed
from ridgepoint.kernels.roofs import Roofs, measure_roofs
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.ffn import Experts
from ridgepoint.nn.linear import Linear
from ridgepoint.units import si

USUAL = {"cpu": 512, "cuda": 8192}
RIDGES = 2  # a chunk of twice the ridge reaches nearly the rate of a long one
ALIGN = 64  # so that a rate measured a little lower does not change the step


def usual_step_tokens(decoder: Decoder, max_num_seqs: int) -> tuple[int, str]:
    """The number and why."""
    device = decoder.embed.weight.device.type
    usual = USUAL.get(device, USUAL["cpu"])
    widest = _widest(decoder)
    if widest is None:
        return max(usual, max_num_seqs), f"usual for {device}"
    roofs = _roofs(native.num_threads())
    flops_per_s, bytes_per_s = roofs.flops_per_s(widest.struct), roofs.read_bytes_per_s
    ridge = ridge_tokens(decoder.spec, precision_of(decoder), flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
    chunk = -(-RIDGES * ridge // ALIGN) * ALIGN
    why = f"{chunk} of prompts, {RIDGES} times the ridge ({si(flops_per_s, 'FLOP/s')} against {si(bytes_per_s, 'B/s')})"
    if chunk > usual:
        why = f"{usual} of prompts: for {RIDGES} times the ridge, {chunk}, readers would wait too long"
        chunk = usual
    return chunk + max_num_seqs, f"{why}, and one for each of {max_num_seqs} sequences"


def _widest(decoder: Decoder) -> Packed | None:
    """The packed matrices that hold most of the weights; None where nothing is packed for the native kernels."""
    modules = list(decoder.modules())
    weights: list[Any] = [module.w_gate_up_E2FD for module in modules if isinstance(module, Experts)]
    weights += [module.weight for module in modules if isinstance(module, Linear)]
    packed = [weight for weight in weights if isinstance(weight, Packed)]
    return max(packed, key=lambda weight: weight.nbytes, default=None)


@cache
def _roofs(threads: int) -> Roofs:
    """Once a process: a start may ask again."""
    return measure_roofs(probe_bytes=1 << 27, milliseconds=20)
