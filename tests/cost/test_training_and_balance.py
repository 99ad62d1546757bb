"""Training arithmetic, speculation, and the balance of a model's life, against closed forms."""

from __future__ import annotations

import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import BEFORE_FIT, shape_of
from ridgepoint.cost.balance import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    balance,
    chinchilla_tokens,
    dense_equivalent,
    overtraining,
)  # fmt: skip
from ridgepoint.cost.speculation import Acceptance, best_length, seconds_per_token
from ridgepoint.cost.training import (
    TrainLayout,
    activation_bytes_per_token,
    state_bytes_per_chip,
    train_flops_per_token,
    train_step,
)
from ridgepoint.errors import ConfigError, PlanError

H100 = accelerator("h100")
DENSE, MOE = model_spec("llama-3.1-8b"), model_spec("qwen3-30b-a3b")


def test_six_flops_per_active_weight() -> None:
    for spec in (DENSE, MOE):
        assert train_flops_per_token(spec, 1.0) == pytest.approx(6 * shape_of(spec).active_params, rel=0.001)
    assert train_flops_per_token(DENSE, 32768.0) > 1.5 * train_flops_per_token(DENSE, 1.0)


def test_pipeline_bubble_is_p_minus_one_over_m() -> None:
    few = train_step(
        DENSE,
        H100,
        TrainLayout(dp=2, pp=4, micro_batches=4, recompute="full"),
        BEFORE_FIT,
        batch_tokens=2**20,
        sequence=4096.0,
    )
    many = train_step(
        DENSE,
        H100,
        TrainLayout(dp=2, pp=4, micro_batches=64, recompute="full"),
        BEFORE_FIT,
        batch_tokens=2**20,
        sequence=4096.0,
    )
    assert few.bubble_frac == pytest.approx(3 / 7) and many.bubble_frac == pytest.approx(3 / 67)
    assert many.estimate_s < few.estimate_s and 0 < few.mfu < many.mfu < BEFORE_FIT.matmul_efficiency


def test_recompute_and_reversible_trade_flops_for_memory() -> None:
    saved = {
        mode: activation_bytes_per_token(DENSE, TrainLayout(recompute=mode)) for mode in ("none", "full", "reversible")
    }
    assert saved["reversible"] < saved["full"] < saved["none"]
    deeper = model_spec("llama-3.1-70b")
    growth = activation_bytes_per_token(deeper, TrainLayout(recompute="reversible")) / saved["reversible"]
    assert growth < 3.0  # width doubles; 2.5 times the layers cost nothing


def test_fsdp_shards_all_state_and_pp_its_layers() -> None:
    whole = sum(state_bytes_per_chip(DENSE, TrainLayout()).values())
    assert whole == pytest.approx(18 * shape_of(DENSE).total_params)
    assert sum(state_bytes_per_chip(DENSE, TrainLayout(dp=8)).values()) == pytest.approx(whole / 8)
    assert sum(state_bytes_per_chip(DENSE, TrainLayout(dp=8, fsdp=False)).values()) == pytest.approx(whole)
    assert (
        sum(state_bytes_per_chip(MOE, TrainLayout(dp=8, ep=8, fsdp=False)).values())
        < 0.25 * 18 * shape_of(MOE).total_params
    )


def test_what_does_not_fit_is_refused_with_the_largest_part() -> None:
    with pytest.raises(PlanError, match=r"training does not fit: .* most of it optimizer"):
        train_step(DENSE, H100, TrainLayout(), BEFORE_FIT, batch_tokens=8192, sequence=4096.0)
    with pytest.raises(PlanError, match="tp 16 leaves the scale-up domain of 8 chips"):
        train_step(DENSE, H100, TrainLayout(tp=16), BEFORE_FIT, batch_tokens=8192, sequence=4096.0)
    with pytest.raises(ConfigError, match="ep 3 does not divide"):
        TrainLayout(dp=8, ep=3)


def test_acceptance_is_a_geometric_sum() -> None:
    assert Acceptance.constant(0.8, 3).tokens_per_step == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert Acceptance.constant(0.0, 3).tokens_per_step == 1.0
    assert seconds_per_token(0.02, 0.0, Acceptance.constant(1.0, 1)) == pytest.approx(0.01)
    free, dear = [0.02] * 6, [0.02 * (1 + k) for k in range(6)]
    assert best_length(free, 1e-4, [0.8] * 5)[0] == 5
    assert best_length(dear, 1e-4, [0.8] * 5)[0] == 0
    with pytest.raises(ConfigError, match="probability in \\[0, 1\\]"):
        Acceptance(curve=(1.2,))


def test_balance_shares_and_overtraining_grow_with_inference() -> None:
    shares = balance(1e10, chinchilla_tokens(1e10), 1e10, 1e13).shares
    assert sum(shares.values()) == pytest.approx(1.0) and shares["inference"] > shares["pretraining"]
    for law in (CHINCHILLA, CHINCHILLA_REFIT):
        ratios = [overtraining(8e9, tokens, law=law).overtrained for tokens in (1e10, 1e12, 1e13)]
        assert ratios == sorted(ratios) and ratios[-1] > 3
        best = overtraining(8e9, 1e12, law=law)
        target = law.loss(8e9, chinchilla_tokens(8e9))
        assert law.loss(best.params, best.tokens) == pytest.approx(target, rel=1e-6) and best.saving_frac > 0


def test_sparse_quality_is_an_interval_that_names_its_limits() -> None:
    small = dense_equivalent(3e9, 0.5e9, 64, 8)
    assert 0.5e9 <= small.low_params < small.high_params <= 3e9 and small.outside == ()
    large = dense_equivalent(671e9, 37e9, 256, 8)
    assert large.outside == ("routed",) and "1.3 B" in large.sources["routed"]
    assert dense_equivalent(1e9, 1e9, 1, 1).low_params == pytest.approx(1e9, rel=0.05)
    with pytest.raises(ConfigError, match="active_params must lie"):
        dense_equivalent(1e9, 2e9, 8, 2)
