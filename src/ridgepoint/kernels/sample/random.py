"""Random numbers without state: the number for (seed, index) is a hash of the two, so nobody else's draws can shift it.

The hash is splitmix64's finaliser (Steele, Lea, Flood 2014), applied to the seed and again to the seed's hash combined
with the index's place in the Weyl sequence.
"""

from __future__ import annotations

import numpy as np

_LOW = 0xFFFF_FFFF_FFFF_FFFF
_WEYL_INT, _M1_INT, _M2_INT = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WEYL, _M1, _M2 = np.uint64(_WEYL_INT), np.uint64(_M1_INT), np.uint64(_M2_INT)
_BITS = 52  # so that u * total rounds to less than total for every double total: the inverse never runs off the end


def uniforms(seeds: list[int], indices: list[int]) -> np.ndarray:
    """Float64 in [0, 1) for each pair. Seeds may be any integers; their low 64 bits count."""
    with np.errstate(over="ignore"):
        keys = _mix(np.array([seed & _LOW for seed in seeds], dtype=np.uint64) + _WEYL)
        bits = _mix(keys + _WEYL * np.array(indices, dtype=np.uint64))
        bits = _mix(bits ^ (keys >> np.uint64(32)))
    return (bits >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS


def stream_key(seed: int) -> int:
    """What `uniform` takes for a seed: the part of the hash that does not depend on the index."""
    return _mix_int((seed + _WEYL_INT) & _LOW)


def uniform(key: int, index: int) -> float:
    """`uniforms` of one pair, for a few rows a step: there an array costs more than it saves."""
    bits = _mix_int((key + _WEYL_INT * index) & _LOW)
    return (_mix_int(bits ^ (key >> 32)) >> (64 - _BITS)) * 2.0**-_BITS


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _M1_INT) & _LOW
    x = ((x ^ (x >> 27)) * _M2_INT) & _LOW
    return x ^ (x >> 31)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))
