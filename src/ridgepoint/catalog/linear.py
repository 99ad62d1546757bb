"""Recurrent token mixers by their widths: parameters, what a sequence keeps, and FLOPs of a token. Decides nothing, runs nothing.

A state is kept in fp32 and the last inputs of the short convolution in bf16, as released engines keep them. A token costs two
FLOPs a weight of its projections and, on the state, two for each pass over it (decay, read, write; a delta rule reads it twice).
"""

from __future__ import annotations

from ridgepoint.catalog.spec import LinearMixerSpec

STATE_BYTES, CONV_BYTES = 4, 2


def gated_delta(d_model: int, *, key_heads: int, value_heads: int, head_dim: int, conv: int) -> LinearMixerSpec:
    """Gated DeltaNet: q, k of the key heads, v and gate z of the value heads, two scalars a value head, one state a value head."""
    keys, values = key_heads * head_dim, value_heads * head_dim
    mixed = 2 * keys + values
    projections = d_model * (mixed + values) + d_model * 2 * value_heads + values * d_model
    vectors = mixed * conv + 2 * value_heads + head_dim
    state = value_heads * head_dim * head_dim
    return LinearMixerSpec(
        kind="gdn", num_heads=value_heads, num_params=projections + vectors, state_bytes_per_seq=state * STATE_BYTES,
        conv_bytes_per_seq=mixed * (conv - 1) * CONV_BYTES, flops_per_token=2.0 * (projections + vectors) + 8.0 * state,
    )  # fmt: skip


def kimi_delta(d_model: int, *, num_heads: int, head_dim: int, conv: int, full_rank_gate: bool) -> LinearMixerSpec:
    """Kimi Delta Attention: q, k, v of all heads, a decay per channel from a low-rank pair, an output gate of low or full rank."""
    width = num_heads * head_dim
    low_rank = d_model * head_dim + head_dim * width
    gate = d_model * width if full_rank_gate else low_rank
    projections = 4 * d_model * width + low_rank + gate + d_model * num_heads
    vectors = 3 * width * conv + width + num_heads + head_dim
    state = num_heads * head_dim * head_dim
    return LinearMixerSpec(
        kind="kda", num_heads=num_heads, num_params=projections + vectors, state_bytes_per_seq=state * STATE_BYTES,
        conv_bytes_per_seq=3 * width * (conv - 1) * CONV_BYTES, flops_per_token=2.0 * (projections + vectors) + 8.0 * state,
    )  # fmt: skip


def mamba2(
    d_model: int, *, num_heads: int, head_dim: int, groups: int, state_dim: int, conv: int, conv_bias: bool
) -> LinearMixerSpec:
    """Mamba-2: gate, input, B and C of the groups and a step size a head from one projection; a state of head_dim x state_dim a head."""
    inner = num_heads * head_dim
    mixed = inner + 2 * groups * state_dim
    projections = d_model * (inner + mixed + num_heads) + inner * d_model
    vectors = mixed * conv + (mixed if conv_bias else 0) + 3 * num_heads + inner
    state = num_heads * head_dim * state_dim
    return LinearMixerSpec(
        kind="mamba2", num_heads=num_heads, num_params=projections + vectors, state_bytes_per_seq=state * STATE_BYTES,
        conv_bytes_per_seq=mixed * (conv - 1) * CONV_BYTES, flops_per_token=2.0 * (projections + vectors) + 6.0 * state,
    )  # fmt: skip
