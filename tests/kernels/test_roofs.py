"""Roofs: which peak binds which weight, and bytes as they lie in memory."""

from __future__ import annotations

import ctypes
from dataclasses import asdict

import pytest
import torch
from native_support import needs_native

from ridgepoint.kernels.packed import Packed, pack
from ridgepoint.kernels.roofs import Roofs, measure_roofs, weight_at, weight_bytes

pytestmark = needs_native
ROOFS = Roofs(
    read_bytes_per_s=1e9, f32_flops_per_s=1.0, bf16_flops_per_s=2.0, int8_flops_per_s=4.0, int16_flops_per_s=2.0
)


def _packed(fmt: str) -> Packed:
    return pack(torch.ones(2, 70, 256), fmt)


@pytest.mark.parametrize(
    ("fmt", "peak"), [("f32", 1), ("bf16", 2), ("fp8", 2), ("int8", 2), ("int8-a8", 4), ("int4-32", 2), ("mxfp4-a8", 4)]
)
def test_the_peak_follows_weights_and_activations(fmt: str, peak: float) -> None:
    assert ROOFS.flops_per_s(_packed(fmt).struct) == peak


def test_bytes_are_those_in_memory() -> None:
    packed = _packed("int4-32-a8")
    weight = weight_at(packed.address)
    assert weight_bytes(weight) == packed.nbytes == 2 * 128 * (256 // 2 + 256 // 32 * 2)
    assert ctypes.addressof(weight) == packed.address


def test_the_better_of_two_measurements() -> None:
    other = Roofs(
        read_bytes_per_s=5.0, f32_flops_per_s=9.0, bf16_flops_per_s=1.0, int8_flops_per_s=4.0, int16_flops_per_s=2.0
    )
    assert ROOFS.best(other) == Roofs(
        read_bytes_per_s=1e9, f32_flops_per_s=9.0, bf16_flops_per_s=2.0, int8_flops_per_s=4.0, int16_flops_per_s=2.0
    )


def test_measured_rates_are_rates() -> None:
    roofs = measure_roofs(probe_bytes=8 << 20, milliseconds=2)
    assert min(asdict(roofs).values()) > 0
