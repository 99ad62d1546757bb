"""The ridge against its closed form: FLOP/s over bytes/s, times bytes per weight over two, times all over active parameters."""

from __future__ import annotations

import pytest

from ridgepoint.catalog.models import model_spec
from ridgepoint.cost.formats import Precision, bytes_per_value
from ridgepoint.cost.ridge import ridge_tokens
from ridgepoint.cost.shape import shape_of

BYTES_PER_S = 3e12


def ridge(name: str, fmt: str, ratio: float) -> int:
    """On a machine of so many FLOPs per byte."""
    precision = Precision(weights=fmt, experts=fmt, head=fmt)
    return ridge_tokens(model_spec(name), precision, flops_per_s=ratio * BYTES_PER_S, bytes_per_s=BYTES_PER_S)


@pytest.mark.parametrize("fmt", ["bf16", "fp8", "int4"])
def test_a_dense_model_has_the_ridge_of_the_machine(fmt: str) -> None:
    # Attention's own products and the one row of the head move it by little.
    assert ridge("llama-3.1-70b", fmt, 300.0) == pytest.approx(300.0 * bytes_per_value(fmt) / 2, rel=0.05)


def test_sparsity_moves_the_ridge() -> None:
    for name in ("qwen3-30b-a3b", "deepseek-v3"):
        spec = model_spec(name)
        shape = shape_of(spec)
        closed = 300.0 * shape.total_params / shape.active_params
        assert ridge(name, "bf16", 300.0) == pytest.approx(closed, rel=0.2)
    # Where experts fill up slowly the closed form reads them all and asks too much; at most by what is not hit.
    assert ridge("qwen3-30b-a3b", "bf16", 3.0) < ridge("qwen3-30b-a3b", "bf16", 30.0) / 5


def test_the_ridge_is_where_the_two_times_meet() -> None:
    """One token less is on the other side: nothing in between was skipped."""
    found = [ridge("olmoe-1b-7b", "bf16", ratio) for ratio in (1.0, 2.0, 5.0, 20.0, 100.0)]
    assert found == sorted(found) and found[0] >= 1 and found[-1] > 10 * found[1]
