"""How a measured row was run, where the table does not say: what the published recipes of its benchmark fix.

Two sources are in the table. One is a public sweep that keeps its recipes under version control (SemiAnalysisAI/InferenceX,
`.github/configs/nvidia-master.yaml`, `perf-changelog.yaml` and `benchmarks/`, read from commit 17d5e204f of November 2025 to 6f3c1c07e of April
2026). They state the cache's format, the tokens of one step, where experts lie, how many tokens the model drafts for itself, and that
lengths are drawn evenly from 0.8 to 1.0 of the nominal ones. The other source sends requests of one length.

Knows no measured time: a row is looked up by what was deployed. Where recipes of one image and layout differ, the answer is that nobody
can tell (`draft_tokens` None).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

SHORTEST_FRAC = 0.8  # of the nominal length, in the sweep's draw
_SWEEP = re.compile(r"source_file=\d{4}-|db-dump/")

# Each of three drafts of DeepSeek-R1's own module is right with this probability while those before it were: SGLang on GB200 emits 2.37
# tokens a step (published with that benchmark; none of the rows here).
ACCEPTANCE = 0.656


class Run(NamedTuple):
    """What the table does say."""

    source: str
    model: str
    chip: str
    engine: str
    version: str
    precision: str
    tp: int
    dp_attention: int
    input_tokens: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`kv` None: the engine's default. `expert_parallel`: experts lie on all chips of the instance, whatever the table says."""

    kv: str | None = None
    draft_tokens: int | None = 0
    chunk_tokens: float = 8192.0
    mean_length_frac: float = 1.0
    equal_lengths: bool = True
    expert_parallel: bool = False


AS_STATED = Recipe()


def recipe(run: Run) -> Recipe:
    if not _SWEEP.match(run.source):
        return AS_STATED
    return Recipe(
        kv="fp8" if _narrow_cache(run) else "bf16", draft_tokens=_drafts(run), chunk_tokens=_chunk(run),
        mean_length_frac=0.5 * (1 + SHORTEST_FRAC), equal_lengths=False, expert_parallel=_expert_parallel(run),
    )  # fmt: skip


def _drafts(run: Run) -> int | None:
    """The drafting recipes `dsr1-*-trt-mtp` have images of their own since January 2026, and draft one token under data-parallel attention;
    `dsr1-fp8-b200-sglang-mtp` shares its image with a plain recipe of fewer clients."""
    if run.model != "deepseek-v3":
        return 0
    january = run.version == "1.1.0rc2.post2" and "measured=2026" in run.source
    if run.engine == "trtllm" and (january or run.version == "1.2.0rc6.post3"):
        return 1 if run.dp_attention > 1 else 3
    if (run.engine, run.chip, run.precision, run.version, run.tp) == ("sglang", "b200-sxm", "fp8", "0.5.9", 8):
        plain_up_to = 4 if run.input_tokens == 8192 else 64
        return 2 if run.concurrency > plain_up_to else None
    return 0


def _narrow_cache(run: Run) -> bool:
    if run.model == "deepseek-v3":
        return run.engine == "trtllm" or run.chip == "b200-sxm"
    if run.model == "minimax-m2.5":
        return run.chip == "b200-sxm" and run.version == "0.19.0"
    return run.model == "gpt-oss-120b" and run.chip == "b200-sxm"


def _chunk(run: Run) -> float:
    if run.engine == "trtllm":
        return 20000.0 if run.model == "gpt-oss-120b" else max(8192.0, float(run.input_tokens + run.concurrency))
    if run.engine == "sglang":
        return 32768.0 if run.chip == "h200-sxm" else 16384.0
    return 8192.0


def _expert_parallel(run: Run) -> bool:
    """Scripts that ask for it whenever the stated degree is at least one."""
    return run.model == "minimax-m2.5" and (run.version == "0.17.0" or (run.chip == "h200-sxm" and run.tp == 8))
