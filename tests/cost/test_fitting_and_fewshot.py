"""Calibration: a fit finds the constants that made the data, five points mend a deployment, and priors hold what data does not touch."""

from __future__ import annotations

import numpy as np
import pytest

from ridgepoint.catalog.hardware import accelerator
from ridgepoint.catalog.models import model_spec
from ridgepoint.cost import BEFORE_FIT, Layout, Precision
from ridgepoint.cost.calibration import Calibration, calibration, calibrations
from ridgepoint.cost.closed_loop_fit import STEP_CONSTANTS, Deployment, fit_closed_loop, log_tpot
from ridgepoint.cost.fewshot import adjust, choose_points
from ridgepoint.cost.fitting import Group, decode, encode, fit, jacobian
from ridgepoint.cost.serving import ClosedLoop, price_serving, serving_amounts
from ridgepoint.errors import ConfigError

TRUTH = BEFORE_FIT.adjusted(
    memory_efficiency=0.6, kernel_overhead_s=6e-6, sequence_overhead_s=2.5e-5, matmul_efficiency=0.45
)


def deployment(model: str = "gpt-oss-120b", truth: Calibration = TRUTH, noise: float = 0.0) -> Deployment:
    grid = np.array([(c, i, tp) for c in (1, 4, 16, 64, 256) for i in (256, 2048, 8000) for tp in (1, 2, 4)], float)
    load = ClosedLoop(input_tokens=grid[:, 1], output_tokens=np.full(len(grid), 512.0), concurrency=grid[:, 0])
    chip = accelerator("h200")
    amounts = serving_amounts(model_spec(model), chip, Layout(tp=grid[:, 2]), Precision.named("mxfp4"), load)
    made = price_serving(amounts, chip, truth)
    wobble = np.random.default_rng(1).normal(0, noise, (2, len(grid))) if noise else np.zeros((2, len(grid)))
    return Deployment(
        chip, amounts, ("engine:x",), np.log(made.estimate_tpot_s) + wobble[0], np.log(made.estimate_ttft_s) + wobble[1]
    )


def test_coordinates_round_trip() -> None:
    for name in STEP_CONSTANTS:
        value = getattr(BEFORE_FIT, name)
        assert decode(name, encode(name, value)) == pytest.approx(value)


def test_a_fit_explains_the_data_that_made_it() -> None:
    data = deployment()
    group = Group(log_tpot(data), data.log_tpot)
    before = np.abs(log_tpot(data)(BEFORE_FIT) - data.log_tpot)
    fitted = fit([group], BEFORE_FIT, STEP_CONSTANTS, prior_sd=1.0, noise=0.02).calibration()
    after = np.abs(log_tpot(data)(fitted) - data.log_tpot)
    assert np.median(before) > 0.1 and after.max() < 0.03
    assert fitted.memory_efficiency == pytest.approx(TRUTH.memory_efficiency, rel=0.15)


def test_the_prior_holds_what_no_point_touches() -> None:
    data = deployment()
    fitted = fit([Group(log_tpot(data), data.log_tpot)], BEFORE_FIT, STEP_CONSTANTS, prior_sd=0.5).calibration()
    far = fit([Group(log_tpot(data), data.log_tpot)], BEFORE_FIT, ("hop_latency_s",), prior_sd=0.5).calibration()
    assert far.hop_latency_s == pytest.approx(BEFORE_FIT.hop_latency_s)  # no pipeline in the data
    assert fitted.hop_latency_s == BEFORE_FIT.hop_latency_s


def test_five_chosen_points_mend_a_deployment() -> None:
    data = deployment(noise=0.02)
    predict = log_tpot(data)
    asked = choose_points(predict, BEFORE_FIT, STEP_CONSTANTS, count=5)
    assert len(set(asked.tolist())) == 5
    loads = data.amounts.workload
    assert loads.concurrency[asked].max() >= 64 and loads.concurrency[asked].min() <= 16  # from both sides of the ridge
    rest = np.setdiff1d(np.arange(len(data.log_tpot)), asked)
    adjusted = adjust(predict, BEFORE_FIT, STEP_CONSTANTS, asked, data.log_tpot[asked])
    before = np.median(np.abs(predict(BEFORE_FIT) - data.log_tpot)[rest])
    after = np.median(np.abs(adjusted.log_predict(predict) - data.log_tpot)[rest])
    assert after < 0.05 < 0.5 * before
    with pytest.raises(ConfigError, match="cannot choose 0 of"):
        choose_points(predict, BEFORE_FIT, STEP_CONSTANTS, count=0)


def test_labels_get_their_own_offsets_and_strangers_none() -> None:
    slow = deployment(truth=TRUTH.adjusted(kernel_overhead_s=1.2e-5))
    fast = deployment()
    slow = Deployment(slow.hardware, slow.amounts, ("engine:slow",), slow.log_tpot, slow.log_ttft)
    fast = Deployment(fast.hardware, fast.amounts, ("engine:fast",), fast.log_tpot, fast.log_ttft)
    found = fit_closed_loop([slow, fast], BEFORE_FIT, label_sd=0.5)
    assert (
        found.calibration(("engine:slow",)).kernel_overhead_s
        > 1.2 * found.calibration(("engine:fast",)).kernel_overhead_s
    )
    assert found.calibration(("engine:new",)) == found.calibration()


def test_a_low_quantile_fits_the_fast_ones() -> None:
    """One deployment in five is twice as fast as the others: the middle ignores it, the low quantile is drawn to it."""
    usual, fast = deployment(), deployment(truth=TRUTH.adjusted(kernel_overhead_s=1.5e-6, sequence_overhead_s=5e-6))
    groups = [Group(log_tpot(d), d.log_tpot) for d in (usual, usual, usual, usual, fast)]
    middle, low = (fit(groups, BEFORE_FIT, STEP_CONSTANTS, noise=0.05, quantile=q).calibration() for q in (0.5, 0.1))
    assert low.kernel_overhead_s < 0.7 * middle.kernel_overhead_s
    fast_error, usual_error = (np.median(log_tpot(d)(low) - d.log_tpot) for d in (fast, usual))
    assert usual_error < -0.1 < fast_error < 0.1
    with pytest.raises(ConfigError, match=r"quantile must lie in \(0, 1\), got 1"):
        fit(groups, BEFORE_FIT, STEP_CONSTANTS, quantile=1.0)


def test_shipped_constants_have_provenance_and_uncertainty() -> None:
    for name in ("serving", "serving-vllm", "serving-trtllm", "serving-sglang", "tuned"):
        constants = calibration(name)
        assert constants.provenance.startswith("measure_: fitted to")
        assert 0.05 < constants.uncertainty < 0.4 and 0.1 < constants.ttft_uncertainty < 0.8
    assert calibrations()["roofline"].kernel_overhead_s == 0.0
    with pytest.raises(ConfigError, match="unknown calibration 'mine'"):
        calibration("mine")
    with pytest.raises(ConfigError, match="memory_efficiency must be a fraction of peak"):
        BEFORE_FIT.adjusted(memory_efficiency=1.2)
    with pytest.raises(ConfigError, match="nothing to fit"):
        fit([], BEFORE_FIT, STEP_CONSTANTS)


def test_all_derivatives_at_once_equal_one_by_one() -> None:
    item = deployment()
    at = np.array([encode(name, getattr(BEFORE_FIT, name)) for name in STEP_CONSTANTS])
    together, apart = (
        jacobian(Group(log_tpot(item), item.log_tpot, batched=batched), BEFORE_FIT, STEP_CONSTANTS, at) for batched in (True, False)
    )  # fmt: skip
    assert np.allclose(together[0], apart[0], rtol=1e-12) and np.allclose(together[1], apart[1], atol=1e-8)
