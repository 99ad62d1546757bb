"""Pre-training, RL and inference compute in one balance, and quality against sparsity as an interval over published laws.

How far past Chinchilla-optimal is it right to train, for this much inference? Less loss per training FLOP is lost by a
smaller model on more tokens, and every inference token is then cheaper: at fixed loss the sum has a minimum. The laws are other
people's fits; each carries the domain it was fitted in, and an answer outside it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ridgepoint.errors import ConfigError


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = irreducible + a / N^alpha + b / D^beta, N parameters, D tokens."""

    name: str
    source: str
    domain: str
    max_params: float
    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        return self.irreducible + self.a / params**self.alpha + self.b / tokens**self.beta

    def tokens_for(self, params: float, loss: float) -> float:
        """Tokens that bring a model of this size to `loss`; infinite when it never gets there."""
        left = loss - self.irreducible - self.a / params**self.alpha
        return float((self.b / left) ** (1.0 / self.beta)) if left > 0 else float("inf")


CHINCHILLA = LossLaw(
    "chinchilla", "Hoffmann et al. 2022, arXiv:2203.15556, approach 3", "dense, 70 M to 16 B parameters, 5 to 500 B tokens", 16e9,
    1.69, 406.4, 0.34, 410.7, 0.28,
)  # fmt: skip
CHINCHILLA_REFIT = LossLaw(
    "chinchilla-refit",
    "Besiroglu et al. 2024, arXiv:2404.10102",
    "the same runs, refitted",
    16e9,
    1.8172,
    482.01,
    0.3478,
    2085.43,
    0.3658,
)

TOKENS_PER_PARAM = 20.0  # Chinchilla's rule of thumb


def chinchilla_tokens(params: float) -> float:
    return TOKENS_PER_PARAM * params


@dataclass(frozen=True)
class Balance:
    """FLOPs of the model's life and where they go. RL rollouts are generated (2 per weight and token) and trained on (6)."""

    pretraining_flops: float
    rl_flops: float
    inference_flops: float

    @property
    def total_flops(self) -> float:
        return self.pretraining_flops + self.rl_flops + self.inference_flops

    @property
    def shares(self) -> dict[str, float]:
        total = self.total_flops
        return {
            "pretraining": self.pretraining_flops / total,
            "rl": self.rl_flops / total,
            "inference": self.inference_flops / total,
        }


def balance(
    active_params: float,
    pretraining_tokens: float,
    rl_tokens: float,
    inference_tokens: float,
    *,
    rl_decode_efficiency: float = 0.3,
) -> Balance:
    """Compute-equivalents: decoding reaches only `rl_decode_efficiency` of the FLOP/s training does, so its 2 N count for more."""
    for name, value in (("active_params", active_params), ("pretraining_tokens", pretraining_tokens)):
        if not value > 0:
            raise ConfigError(f"{name} must be positive, got {value:g}")
    if not 0 < rl_decode_efficiency <= 1:
        raise ConfigError(f"rl_decode_efficiency must lie in (0, 1], got {rl_decode_efficiency:g}")
    generate = 2.0 / rl_decode_efficiency
    return Balance(
        6.0 * active_params * pretraining_tokens,
        (6.0 + generate) * active_params * rl_tokens,
        generate * active_params * inference_tokens,
    )


@dataclass(frozen=True)
class OverTraining:
    """The cheapest life of a model of this loss: its size, its tokens, and how far past Chinchilla's 20 per parameter that is."""

    law: str
    params: float
    tokens: float
    overtrained: float
    saving_frac: float
    inside_domain: bool


def overtraining(
    params: float, inference_tokens: float, *, law: LossLaw = CHINCHILLA, inference_cost: float = 2.0
) -> OverTraining:
    """Hold the loss of (params, 20 params tokens); minimise 6 N D + `inference_cost` N T over N."""
    if not params > 0 or not inference_tokens >= 0:
        raise ConfigError(
            f"params must be positive and inference_tokens not negative, got {params:g} and {inference_tokens:g}"
        )
    target = law.loss(params, chinchilla_tokens(params))
    sizes = params * np.geomspace(0.05, 4.0, 2001)
    tokens = np.array([law.tokens_for(float(size), target) for size in sizes])
    life = 6.0 * sizes * tokens + inference_cost * sizes * inference_tokens
    at = int(np.argmin(life))
    here = 6.0 * params * chinchilla_tokens(params) + inference_cost * params * inference_tokens
    best = float(sizes[at])
    return OverTraining(
        law.name,
        best,
        float(tokens[at]),
        float(tokens[at] / chinchilla_tokens(best)),
        float(1 - life[at] / here),
        best <= law.max_params,
    )


@dataclass(frozen=True)
class SparsityLaw:
    """Dense-equivalent parameters of a sparse model, by one published law, with the domain it holds in."""

    name: str
    source: str
    domain: str
    equivalent: Callable[[float, float, int, int], float]
    inside: Callable[[float, float, int, int], bool]


def _routed(total: float, active: float, experts: int, top_k: int) -> float:
    """Clark et al. 2022, equations 6 and 11 with the S-BASE fit: log L = a log N + b log E' + c log N log E' + d, E' saturating."""
    a, b, c, start, ceiling = -0.082, -0.108, 0.009, 1.847, 314.478
    expansion = experts / top_k
    saturating = 1.0 / (1.0 / (expansion - 1.0 + 1.0 / (1.0 / start - 1.0 / ceiling)) + 1.0 / ceiling)
    log_n = np.log10(active)
    log_e, log_one = np.log10(saturating), np.log10(start)
    # Solve for the dense size (E = 1, so E' = start) of the same loss.
    same = (a * log_n + b * log_e + c * log_n * log_e - b * log_one) / (a + c * log_one)
    return float(10.0**same)


SPARSITY_LAWS = (
    SparsityLaw(
        "geometric-mean", "rule of thumb quoted by several model reports", "no stated domain: sqrt(total x active)",
        lambda total, active, experts, top_k: float((total * active) ** 0.5), lambda total, active, experts, top_k: True,
    ),
    SparsityLaw(
        "routed", "Clark et al. 2022, arXiv:2202.01169, S-BASE", "up to 1.3 B dense, 512 experts, 130 B tokens",
        _routed, lambda total, active, experts, top_k: active <= 1.3e9 and experts <= 512,
    ),
    SparsityLaw(
        "active-only", "lower bound: idle experts are worth nothing", "always holds", lambda total, active, experts, top_k: active,
        lambda total, active, experts, top_k: True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Dense-equivalent parameters as an interval over laws; `outside` names those used beyond their domain."""

    low_params: float
    high_params: float
    by_law: dict[str, float]
    outside: tuple[str, ...]
    sources: dict[str, str]


def dense_equivalent(total_params: float, active_params: float, num_experts: int, top_k: int) -> Quality:
    """What dense model a sparse one is worth, over the published laws. Never extrapolated silently: see `outside`."""
    if not 0 < active_params <= total_params:
        raise ConfigError(f"active_params must lie in (0, total], got {active_params:g} of {total_params:g}")
    if not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k must lie in [1, {num_experts}], got {top_k}")
    arguments = (total_params, active_params, num_experts, top_k)
    values = {law.name: min(law.equivalent(*arguments), total_params) for law in SPARSITY_LAWS}
    outside = tuple(law.name for law in SPARSITY_LAWS if not law.inside(*arguments))
    return Quality(
        min(values.values()),
        max(values.values()),
        values,
        outside,
        {law.name: f"{law.source}; {law.domain}" for law in SPARSITY_LAWS},
    )
