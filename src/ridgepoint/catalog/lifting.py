"""From how many queries at once a CPU computes latent attention with keys lifted out of the latents, and not absorbed.

A fact of a model's shape, which three must agree on: the kernels that lift, the scheduler that keeps latents of the two forms apart
(`sched.prefix`), and the simulator that predicts what the scheduler will find. Why, and which tokens: `kernels.mla_attention.lifts`.
"""

from __future__ import annotations

from ridgepoint.catalog.spec import MlaSpec, ModelSpec


def lift_tokens(latent_dim: int, nope_dim: int, value_dim: int) -> int | None:
    """The smallest power of two of queries from which lifting all their keys is cheaper; None where it never is, and where keys are
    of an odd width, which the kernels do not lift."""
    gain = 2 * latent_dim - nope_dim - value_dim  # per pair; the rotary part costs both forms the same
    if gain <= 0 or nope_dim % 2:
        return None
    least = -(-latent_dim * (nope_dim + value_dim) // gain)
    return 1 << (least - 1).bit_length()


def lift_runs(spec: ModelSpec) -> tuple[int, ...]:
    """Of the layers that lift. One number, unless their shapes differ."""
    latent = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, MlaSpec)]
    runs = {lift_tokens(mixer.kv_rank, mixer.nope_dim, mixer.v_dim) for mixer in latent if mixer.kv_rank % 2 == 0}
    return tuple(sorted(run for run in runs if run is not None))
