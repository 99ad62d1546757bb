"""What one step works on: groups of sequences that add `new` tokens on top of `cached` ones.

There is no prefill and no decode here, only tokens computed and tokens wanted: decode is new=1, a speculative verification
new=1+draft, a prompt chunk new=chunk. All counts are of the whole instance (all data-parallel ranks and pipeline
micro-batches together) and may be arrays, one value per plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ridgepoint.cost.arrays import Num, all_true
from ridgepoint.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Group:
    """`count` sequences, each adding `new` tokens over `cached` ones. The logits of `logits` of these are wanted: they alone go on
    from the last layer's attention to the head."""

    count: Num
    new: Num
    cached: Num
    logits: Num = 1.0

    def __post_init__(self) -> None:
        for name in ("count", "new", "cached", "logits"):
            if not all_true(getattr(self, name) >= 0):
                raise ConfigError(f"batch group: {name} must not be negative, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The groups of one step."""

    groups: tuple[Group, ...]

    @property
    def tokens(self) -> Num:
        return sum((group.count * group.new for group in self.groups), 0.0)

    @property
    def sequences(self) -> Num:
        return sum((group.count for group in self.groups), 0.0)

    @property
    def logit_rows(self) -> Num:
        return sum((group.count * group.logits for group in self.groups), 0.0)

    @classmethod
    def decode(cls, sequences: Num, context: Num, new: Num = 1.0) -> StepBatch:
        """`sequences` each adding `new` tokens (1, or 1 + draft length) over `context` cached ones."""
        return cls(groups=(Group(count=sequences, new=new, cached=context, logits=new),))

    @classmethod
    def prefill(cls, sequences: Num, prompt: Num, cached: Num = 0.0) -> StepBatch:
        """`sequences` prompts of `prompt` new tokens, the first `cached` tokens being already there (prefix hit or earlier chunk)."""
        return cls(groups=(Group(count=sequences, new=prompt, cached=cached, logits=1.0),))

    @classmethod
    def from_segments(cls, segments: Iterable[tuple[int, int]]) -> StepBatch:
        """From a live batch's (new tokens, cached tokens) pairs. Sequences alike to within a factor two of context share
        a group by their mean, which is exact for full attention and within a few percent at a window's edge."""
        buckets: dict[tuple[int, int], list[float]] = {}
        for new, cached in segments:
            bucket = buckets.setdefault((new, int(cached).bit_length()), [0.0, 0.0])
            bucket[0] += 1
            bucket[1] += cached
        return cls(
            groups=tuple(
                Group(count=count, new=float(new), cached=total / count, logits=1.0)
                for (new, _), (count, total) in buckets.items()
            )
        )

    def __add__(self, other: StepBatch) -> StepBatch:
        return StepBatch(groups=self.groups + other.groups)
