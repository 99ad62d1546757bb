"""Calibrate the closed-loop law against measured TPOT and TTFT: two stages, so that waiting never bends the step law.

Stage one fits the step constants to TPOT; stage two keeps them and fits the waiting constants to TTFT. Deployments (a model on a
chip by one engine) weigh by the square root of their number of points, so that one much-measured deployment is not the law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ridgepoint.catalog.hardware import Accelerator
from ridgepoint.cost.calibration import Calibration
from ridgepoint.cost.fitting import Fit, Group, fit
from ridgepoint.cost.serving import ServingAmounts, price_serving

Vector = NDArray[np.float64]

STEP_CONSTANTS = (
    "memory_efficiency", "matmul_efficiency", "attention_efficiency", "kv_efficiency", "unpack_flops", "narrow_efficiency",
    "link_efficiency", "direct_bytes_per_s",
    "step_overhead_s", "kernel_overhead_s", "collective_overhead_s", "sequence_overhead_s", "eager_kernel_s", "prompt_overhead_s",
)  # fmt: skip
WAIT_CONSTANTS = (
    "request_overhead_s", "prefill_host_kernel_s", "boarding_steps", "prefill_slowdown", "turnover_scale", "bunching_frac",
)  # fmt: skip


# Documented, not fitted: whether the scheduler drains waiting prompts before it decodes on (SGLang's default, its
# `--enable-mixed-chunk` being off), or lets prompts ride on decode steps (vLLM, TensorRT-LLM's in-flight batching).
PREFILL_FIRST_FRAC = {"engine:sglang": 1.0, "engine:trtllm": 0.0, "engine:vllm": 0.0}


def with_policy(calibration: Calibration, labels: Sequence[str]) -> Calibration:
    known = [PREFILL_FIRST_FRAC[label] for label in labels if label in PREFILL_FIRST_FRAC]
    return calibration.adjusted(prefill_first_frac=known[-1]) if known else calibration


@dataclass(frozen=True)
class Deployment:
    """Measured points of one model on one chip type by one engine: unpriced steps and what was measured."""

    hardware: Accelerator
    amounts: ServingAmounts
    labels: tuple[str, ...]
    log_tpot: Vector
    log_ttft: Vector


def log_tpot(deployment: Deployment) -> Callable[[Calibration], Vector]:
    def predict(calibration: Calibration) -> Vector:
        known = with_policy(calibration, deployment.labels)
        cost = price_serving(deployment.amounts, deployment.hardware, known)
        return np.log(cost.estimate_tpot_s + np.zeros_like(deployment.log_tpot))

    return predict


def log_ttft(deployment: Deployment, step: Calibration) -> Callable[[Calibration], Vector]:
    """TTFT under `step`'s step constants and the argument's waiting constants."""

    def predict(calibration: Calibration) -> Vector:
        mixed = step.adjusted(**{name: getattr(calibration, name) for name in WAIT_CONSTANTS})
        cost = price_serving(deployment.amounts, deployment.hardware, mixed)
        return np.log(cost.estimate_ttft_s + np.zeros_like(deployment.log_ttft))

    return predict


@dataclass(frozen=True)
class LoopFit:
    step: Fit
    wait: Fit

    def calibration(self, labels: Sequence[str] = ()) -> Calibration:
        wait = self.wait.calibration(labels)
        return with_policy(self.step.calibration(labels), labels).adjusted(
            **{name: getattr(wait, name) for name in WAIT_CONSTANTS}
        )


def fit_closed_loop(
    deployments: Sequence[Deployment],
    base: Calibration,
    *,
    step_sd: float = 0.3,
    wait_sd: float = 0.3,
    label_sd: float = 0.2,
    noise: float | None = None,
    quantile: float = 0.5,
) -> LoopFit:
    """MAP fit of both stages around `base`, whose values are physically sensible before any fit. A `quantile` below one half fits the
    faster deployments; `noise` replaces the spread beyond which residuals count less (0.15 for TPOT, 0.2 for TTFT)."""
    step_groups = [
        Group(log_tpot(item), item.log_tpot, item.labels, len(item.log_tpot) ** -0.5, batched=True)
        for item in deployments
    ]
    step = fit(
        step_groups, base, STEP_CONSTANTS, prior_sd=step_sd, offset_sd=label_sd, noise=noise or 0.15, quantile=quantile
    )
    wait_groups = [
        Group(
            log_ttft(item, with_policy(step.calibration(item.labels), item.labels)),
            item.log_ttft,
            item.labels,
            len(item.log_ttft) ** -0.5,
            batched=True,
        )
        for item in deployments
    ]
    wait = fit(
        wait_groups,
        base,
        WAIT_CONSTANTS,
        prior_sd=wait_sd,
        offset_sd=1.5 * label_sd,
        noise=noise or 0.2,
        quantile=quantile,
    )
    return LoopFit(step, wait)
