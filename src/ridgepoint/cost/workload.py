"""What users ask for, as token counts: input, cached prefix, visible and thinking output, parallel rollouts.

Thinking tokens are output nobody reads: they cost as output and delay the first visible token. Rollouts share one prompt's
prefill and its cache, and each decodes alone. Pure bookkeeping: no hardware, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from ridgepoint.cost.arrays import Num, all_true
from ridgepoint.cost.serving import ClosedLoop
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request. `rollouts` samples are drawn from one prompt; `tokens_per_step` above 1 is speculation's yield."""

    input_tokens: Num
    output_tokens: Num
    thinking_tokens: Num = 0.0
    prefix_hit_frac: Num = 0.0
    rollouts: Num = 1.0
    tokens_per_step: Num = 1.0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "rollouts", "tokens_per_step"):
            if not all_true(getattr(self, name) > 0):
                raise ConfigError(f"workload: {name} must be positive, got {getattr(self, name)!r}")
        if not all_true(self.thinking_tokens >= 0):
            raise ConfigError(f"workload: thinking_tokens must not be negative, got {self.thinking_tokens!r}")
        if not all_true(self.prefix_hit_frac >= 0) or not all_true(self.prefix_hit_frac <= 1):
            raise ConfigError(f"workload: prefix_hit_frac must lie in [0, 1], got {self.prefix_hit_frac!r}")

    @property
    def decoded_tokens(self) -> Num:
        """Output tokens one sample decodes, thinking included."""
        return self.output_tokens + self.thinking_tokens

    @property
    def computed_input_tokens(self) -> Num:
        """Input tokens prefilled per sample: prefix hits and the sharing among rollouts taken off."""
        return self.input_tokens * (1.0 - self.prefix_hit_frac) / self.rollouts

    def loop(self, concurrency: Num, *, turnover_frac: Num = 0.0) -> ClosedLoop:
        """A closed loop of `concurrency` samples. Rollouts after the first find their whole prompt cached."""
        shared = 1.0 - (1.0 - self.prefix_hit_frac) / self.rollouts
        return ClosedLoop(
            input_tokens=self.input_tokens, output_tokens=self.decoded_tokens, concurrency=concurrency,
            prefix_hit_frac=shared, turnover_frac=turnover_frac,
        )  # fmt: skip

    def first_visible_s(self, ttft_s: Num, tpot_s: Num) -> Num:
        """Seconds to the first token a reader sees: thinking comes before it."""
        return ttft_s + self.thinking_tokens * tpot_s
