"""What is asked of the deployment: the traffic (Workload) and the limits an answer must keep (Goal). Validated here, once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ridgepoint.cost.speculation import Acceptance
from ridgepoint.errors import ConfigError

# Past these a question is a slip of the keyboard: more people than there are, pauses of a century, a draft longer than any drafter's.
MOST = {
    "input_tokens": 1e9, "output_tokens": 1e9, "thinking_tokens": 1e9, "users": 1e10, "requests_per_s": 1e10, "rollouts": 1e6,
    "draft_tokens": 64, "think_time_s": 3e9, "mean_pause_s": 3e9,
}  # fmt: skip

LEAST_REQUESTS_PER_S = 1e-9  # one in thirty years

MINIMISE = ("usd", "watts", "chips", "tpot", "ttft")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Mean request: `input_tokens` of which `prefix_hit_frac` is already cached, then `thinking_tokens` + `output_tokens` written.

    Load is `users` (requests in flight, each starting anew `think_time_s` after its answer) or `requests_per_s`, or neither:
    then one instance is filled. `rollouts` answers share one prompt. Speculation: `draft_tokens` proposed per step, each
    accepted with probability `acceptance` while the ones before it were. `mean_pause_s` and `reuse_prob` describe the pauses
    between the turns of a conversation, for the KV policy.
    """

    input_tokens: int = 2000
    output_tokens: int = 500
    thinking_tokens: int = 0
    prefix_hit_frac: float = 0.0
    users: int | None = None
    requests_per_s: float | None = None
    think_time_s: float = 0.0
    rollouts: int = 1
    draft_tokens: int = 0
    acceptance: float = 0.0
    mean_pause_s: float = 60.0
    reuse_prob: float = 0.5

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not value <= most:
                raise ConfigError(f"{name} must be at most {most:,.0f}, got {value!s:.40}")
        for name in ("input_tokens", "output_tokens", "rollouts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("thinking_tokens", "think_time_s", "draft_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name):g}")
        for name in ("prefix_hit_frac", "reuse_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} must be between 0 and 1, got {getattr(self, name):g}", hint="a fraction, not a percentage"
                )
        if not 0 <= self.acceptance < 1:
            raise ConfigError(f"acceptance must be in [0, 1), got {self.acceptance:g}")
        if not self.mean_pause_s > 0:
            raise ConfigError(f"mean_pause_s must be positive, got {self.mean_pause_s:g}")
        if self.users is not None and self.requests_per_s is not None:
            raise ConfigError(
                "users and requests_per_s contradict each other",
                hint="give one: the other follows from the answer's latency",
            )
        if self.users is not None and self.users < 1:
            raise ConfigError(f"users must be at least 1, got {self.users}")
        if self.requests_per_s is not None and not self.requests_per_s >= LEAST_REQUESTS_PER_S:
            raise ConfigError(
                f"requests_per_s must be positive, at least {LEAST_REQUESTS_PER_S:g}, got {self.requests_per_s:g}"
            )
        if self.draft_tokens and not self.acceptance:
            raise ConfigError(f"draft_tokens {self.draft_tokens} needs an acceptance", hint="--acceptance 0.7")

    @property
    def is_open(self) -> bool:
        """No load is stated: one instance is filled, and priced as one of many."""
        return self.users is None and self.requests_per_s is None

    @property
    def written_tokens(self) -> int:
        """Tokens decoded per answer."""
        return self.output_tokens + self.thinking_tokens

    @property
    def new_input_tokens(self) -> float:
        """Prompt tokens actually computed, at least the last one; rollouts share one prefill."""
        return max(1.0, self.input_tokens * (1 - self.prefix_hit_frac)) / self.rollouts

    @property
    def cached_input_tokens(self) -> float:
        return self.input_tokens - max(1.0, self.input_tokens * (1 - self.prefix_hit_frac))

    @property
    def decode_context(self) -> float:
        """Mean cached tokens of a decoding sequence."""
        return self.input_tokens + 0.5 * self.written_tokens

    @property
    def tokens_per_step(self) -> float:
        """Tokens a sequence gains per step: 1 + a + a^2 + ... + a^draft."""
        return Acceptance.constant(self.acceptance, self.draft_tokens).tokens_per_step


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Limits (None: free), what to minimise, and the probability with which the estimate must keep the latency limits.

    `usd_per_mtok` limits the cost of a million written tokens, everything included. `context` is the longest request that
    must fit. `wait_s` limits the worst wait of who just missed a step: two intervals. `confidence` 0.5 compares the middle estimate; above it, the matching end of the interval.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    wait_s: float | None = None
    usd_per_mtok: float | None = None
    watts: float | None = None
    chips: int | None = None
    context: int | None = None
    minimise: str = "usd"
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("minimise", "confidence") and value is not None and not value > 0:
                raise ConfigError(f"goal {field.name} must be positive, got {value:g}")
        if self.minimise not in MINIMISE:
            raise ConfigError(f"unknown objective {self.minimise!r}", hint="minimise one of " + ", ".join(MINIMISE))
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"confidence must be in [0.5, 1), got {self.confidence:g}", hint="0.9 keeps a limit nine times in ten"
            )

    def limits(self) -> dict[str, float]:
        """Metric column -> limit, for those that are set."""
        named = {
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "worst_wait_s": self.wait_s,
            "usd_per_mtok": self.usd_per_mtok,
            "watts": self.watts,
            "chips": self.chips,
        }
        return {name: float(value) for name, value in named.items() if value is not None}
