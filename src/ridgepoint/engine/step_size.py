"""How many tokens a step holds where nobody says: the usual number, and beside sequences that decode as many of prompts as
the ridge has. Up to there reading the weights, which the decoding pays for, hides their arithmetic; past it every prompt
token costs its whole arithmetic, and everybody who reads along waits for it. Latents that are lifted for whole runs of a prompt
are lifted again by every chunk of a run, so where they are, one run is the least.

The ridge is computed from rates measured at the start, with the native kernels; elsewhere prompts take what there is.
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
# So that rates measured at the start, which a shared machine halves within minutes, seldom change the step. Up, because fewer tokens
# than the ridge read all weights for less, and with too few a step prompts wait for each other.
ALIGN = 128


def usual_step_tokens(device: str, max_num_seqs: int) -> int:
    """Tokens of a whole step."""
    return max(USUAL.get(device, USUAL["cpu"]), max_num_seqs)


def usual_mixed_tokens(decoder: Decoder, runs: tuple[int, ...] = ()) -> tuple[int, str] | None:
    """Tokens of prompts beside sequences that decode, and why; None where no ridge is known. `runs` are `lift_runs`'."""
    widest = _widest(decoder)
    if widest is None:
        return None
    roofs = _roofs(native.num_threads())
    flops_per_s, bytes_per_s = roofs.flops_per_s(widest.struct), roofs.read_bytes_per_s
    ridge = ridge_tokens(decoder.spec, precision_of(decoder), flops_per_s=flops_per_s, bytes_per_s=bytes_per_s)
    usual, why = -(-ridge // ALIGN) * ALIGN, f"the ridge, {si(flops_per_s, 'FLOP/s')} against {si(bytes_per_s, 'B/s')}"
    run = max(runs, default=0)
    return (usual, why) if usual >= run else (run, f"a run that latent attention lifts, above {why}")


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
