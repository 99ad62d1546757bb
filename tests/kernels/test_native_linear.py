"""Native products: error, padding, and bits that depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch
from native_support import (
    FLOAT32_ERROR,
    ISAS,
    SLACK,
    needs_native,
    rms,
    same_bits_whoever_computes,
    surrounded,
    threads,
)

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.linear import linear, linear_f32, linear_heads
from ridgepoint.kernels.packed import pack

pytestmark = needs_native
SHAPES = [(1, 64, 64), (2, 1, 3), (3, 100, 37), (7, 65, 128), (13, 130, 257), (29, 200, 96)]  # rows, outputs, inputs


def _inputs(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(rows * 1000 + outputs)
    x = torch.randn(rows, inputs, generator=made).to(dtype)
    w = torch.randn(outputs, inputs, generator=made).to(dtype) / inputs**0.5
    return x, w, torch.randn(outputs, generator=made)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_as_exact_as_an_unfused_product(isa: str, shape: tuple[int, int, int]) -> None:
    x, w, bias = _inputs(*shape, torch.bfloat16)
    truth = x.double() @ w.double().T + bias.double()
    unfused = (x @ w.T) + bias.bfloat16()
    with native.forced_isa(isa):
        packed = pack(w)
        got = linear(x, packed, bias)
        wide = linear_f32(x, packed, bias)
    assert got.dtype == torch.bfloat16
    assert rms(got.double() - truth) <= SLACK * rms(unfused.double() - truth) + 1e-9
    assert rms(wide.double() - truth) <= FLOAT32_ERROR * rms(truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_and_router_products(isa: str, shape: tuple[int, int, int]) -> None:
    x, w, bias = _inputs(*shape, torch.float32)
    with native.forced_isa(isa):
        packed = pack(w)
        got = linear(x, packed, bias)
        router = linear_f32(x.bfloat16(), packed)
    truth = x.double() @ w.double().T
    assert rms(got.double() - truth - bias.double()) <= FLOAT32_ERROR * rms(truth)
    assert rms(router.double() - x.bfloat16().double() @ w.double().T) <= FLOAT32_ERROR * rms(truth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_depend_on_the_row_alone(isa: str, dtype: torch.dtype) -> None:
    x, w, bias = _inputs(29, 200, 95, dtype)
    with native.forced_isa(isa):
        packed = pack(w)
        whole = same_bits_whoever_computes(lambda: linear(x, packed, bias))
        for first, last in ((0, 1), (3, 5), (5, 12), (12, 29)):
            assert torch.equal(linear(x[first:last], packed, bias), whole[first:last])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", [64, 37])
def test_nothing_outside_the_operands_is_read(isa: str, inputs: int) -> None:
    x, w, _ = _inputs(5, 70, inputs, torch.bfloat16)
    with native.forced_isa(isa):
        packed = pack(surrounded(w))
        assert torch.equal(packed.dense()[0], w.float())
        assert torch.equal(linear(surrounded(x), packed), linear(x, packed))


@pytest.mark.parametrize("isa", ISAS)
def test_one_matrix_per_head(isa: str) -> None:
    made = torch.Generator().manual_seed(1)
    x, w = torch.randn(9, 3, 40, generator=made).bfloat16(), torch.randn(3, 70, 40, generator=made).bfloat16()
    with native.forced_isa(isa):
        got = linear_heads(x, pack(w))
    truth = torch.einsum("thi,hoi->tho", x.double(), w.double())
    unfused = torch.einsum("thi,hoi->tho", x, w)
    assert rms(got.double() - truth) <= SLACK * rms(unfused.double() - truth)


def test_no_rows_is_no_work() -> None:
    assert linear(torch.empty(0, 8).bfloat16(), pack(torch.zeros(4, 8).bfloat16())).shape == (0, 4)


def test_wrong_activations_are_refused() -> None:
    packed = pack(torch.zeros(4, 8).bfloat16())
    with pytest.raises(ConfigError, match="float32"):
        linear(torch.zeros(1, 8), packed)
    with pytest.raises(ConfigError, match="rows of 9"):
        linear(torch.zeros(1, 9).bfloat16(), packed)
    with pytest.raises(ConfigError, match="float64"):
        pack(torch.zeros(4, 8).double())


def test_every_panel_is_taken_once_however_many_threads_walk() -> None:
    x, w, _ = _inputs(2, 23 * 64, 64, torch.bfloat16)
    packed = pack(w)
    whole = linear(x, packed)
    assert torch.equal(whole[:, -64:], linear(x, pack(w[-64:])))
    for count in (2, 3, 5, 8):
        with threads(count):
            for _ in range(20):
                assert torch.equal(linear(x, packed), whole)
