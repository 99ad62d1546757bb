"""A checksum of bytes: the native one, and the slow twin that says what it is."""

from __future__ import annotations

import numpy as np

from ridgepoint.kernels import native

_ODD, _LANES = 0x9E3779B97F4A7C15, 8
_MASK = (1 << 64) - 1


def checksum(data: np.ndarray) -> int:
    """Of contiguous uint8 data, by the native library; releases the interpreter's lock."""
    return int(native.library().rp_checksum(data.ctypes.data, data.nbytes))


def checksum_by_definition(data: bytes) -> int:
    lanes = list(range(1, _LANES + 1))
    step = 8 * _LANES
    whole = len(data) // step * step
    padded = data[:whole] + data[whole:].ljust(step, b"\0")
    for at in range(0, whole + step, step):
        for k in range(_LANES):
            word = int.from_bytes(padded[at + 8 * k : at + 8 * k + 8], "little")
            lanes[k] = (lanes[k] ^ word) * _ODD & _MASK
    total = len(data) * _ODD & _MASK
    for lane in lanes:
        total = (total ^ lane ^ lane >> 29) * _ODD & _MASK
        total ^= total >> 32
    return total
