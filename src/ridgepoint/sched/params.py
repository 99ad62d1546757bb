"""What a request asks of generation. The scheduler reads the limits, the sampler reads the rest; neither changes it.

Validated where it enters (`server` for HTTP, the command line for `complete`): past that edge every value is in range.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Neutral values (temperature 1, top_k 0, top_p 1, min_p 0, penalties 0, repetition 1) change nothing.

    `temperature` 0 is greedy. `seed` None draws a fresh seed on admission, which the output reports. `logprobs` is the
    number of top alternatives wanted beside the chosen token's own (0: only its own, None: none). Stop *strings* are
    text and therefore matched by the front end (`engine.text`), which then cancels; stop *ids* end it here.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
