"""The checksum of packed files: the native one is the defined one, and no changed byte goes unseen."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from native_support import needs_native

from ridgepoint.kernels.checksum import checksum, checksum_by_definition

pytestmark = needs_native


def of(data: bytes) -> int:
    return checksum(np.frombuffer(data, dtype=np.uint8))


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=300))
def test_it_is_the_defined_one(data: bytes) -> None:
    assert of(data) == checksum_by_definition(data)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(min_size=1, max_size=300), at=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_or_a_changed_length_is_seen(data: bytes, at: int, change: int) -> None:
    other = bytearray(data)
    other[at % len(data)] ^= change
    assert of(bytes(other)) != of(data)
    assert of(data + b"\0") != of(data) and of(data[:-1]) != of(data)
