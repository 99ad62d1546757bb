"""The messages between the front end and the engine process: msgspec over a local zmq socket, tagged by `type`.

Nothing here is executable: no pickle, no callables, no paths. Token ids cross; of texts only grammars do.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ridgepoint.engine.logprobs import TokenLogprobs
from ridgepoint.sched.params import SamplingParams


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


# ---------------------------------------------------------------- front end -> engine


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form that an output must have; `param` is the request's field that asked for it, for errors. Where it is only a part
    of the output, `within` is Lark that says where: it calls the form `@form`."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    param: str
    within: str | None = None


class Submit(_Message, frozen=True, tag="submit"):
    """Start one sequence. `salt` separates tenants in the prefix cache; `request_id` is unique for the process's life."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    salt: bytes = b""
    grammar: Grammar | None = None


class Cancel(_Message, frozen=True, tag="cancel"):
    """Stop a sequence and free its blocks before the next step. Unknown ids are ignored: it may just have finished."""

    request_id: str


class Drain(_Message, frozen=True, tag="drain"):
    """Finish what runs, refuse what is new, then answer `Stopped` and exit."""


class Shutdown(_Message, frozen=True, tag="shutdown"):
    """Exit now."""


ToEngine = Submit | Cancel | Drain | Shutdown


# ---------------------------------------------------------------- engine -> front end


class Ready(_Message, frozen=True, tag="ready"):
    """The model is loaded and warm; sent once. `load_s` is all of the start, `startup_s` what its parts took, and
    `configurations` how many kernel choices were loaded, tuned and left."""

    model: str
    vocab_size: int
    max_context: int
    num_blocks: int
    block_tokens: int
    load_s: float
    startup_s: dict[str, float] = {}
    configurations: dict[str, int] = {}


class Output(_Message, frozen=True, tag="output"):
    """Tokens of one sequence from one step. The first output of a request carries what the prompt cost.

    `finish_reason`: `stop` (eos or stop id, which is the last of `token_ids`), `length`, `cancelled`, or `error`.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    queue_s: float | None = None
    seed: int | None = None
    finish_reason: str | None = None
    error: str | None = None


class Refused(_Message, frozen=True, tag="refused"):
    """A submission that was not taken, or whose grammar failed on the way; the fields are those of `RequestError`, which the client raises from it."""

    request_id: str
    message: str
    status: int
    param: str | None = None
    code: str | None = None
    hint: str | None = None


RATIO_EDGES = (0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 2.0)  # of predicted over measured seconds


class StepTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Of the steps that were predicted, since start: by the calibrated constants (`predicted_s`, of which `roof_s` says what sets them)
    and following the machine (`followed_s`). `ratio_counts[i]` steps had a ratio predicted / measured up to `RATIO_EDGES[i]` and
    above the edge before, the last count those past the last edge; `followed_counts` likewise."""

    steps: int
    measured_s: float
    predicted_s: float
    followed_s: float
    floor_s: float
    roof_s: dict[str, float]
    ratio_counts: list[int]
    followed_counts: list[int]
    joules: float | None
    usd: float | None


class StepReport(_Message, frozen=True, tag="step"):
    """What one step did, for metrics. Counters are totals since start, gauges are now.

    Not every step is reported: at most one in each tenth of a second, and always the one after which nothing runs.
    `used_blocks` counts blocks that a sequence holds; blocks only kept for reuse are free. `machine_speed` is how fast the parts of a
    step go now, over the speeds that were calibrated.
    """

    step: int
    num_tokens: int
    num_seqs: int
    running: int
    waiting: int
    used_blocks: int
    step_s: float
    predicted_s: float | None
    followed_s: float | None
    machine_speed: dict[str, float] | None
    totals: StepTotals | None
    preemptions_total: int
    prefix_hit_tokens_total: int
    prefix_query_tokens_total: int
    computed_tokens_total: int
    masks_total: int | None = None  # of constrained sequences; None where the engine cannot constrain
    masks_s_total: float | None = None
    joules_per_step: float | None = None  # measured by the device, mean since the last report; None without a counter
    joules_total: float | None = None  # measured by the device while there was work


class Stopped(_Message, frozen=True, tag="stopped"):
    """The engine has drained and is exiting."""


class Fatal(_Message, frozen=True, tag="fatal"):
    """The engine cannot continue; `message` is one line for the user, who can mend it if `mendable`."""

    message: str
    mendable: bool = False


FromEngine = Ready | Output | Refused | StepReport | Stopped | Fatal
