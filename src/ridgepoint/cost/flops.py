"""FLOPs of a model's arithmetic, whole and unsharded: 2 per weight a token is multiplied with, and attention on top.

Only matrix products count (norms, activations, softmax and lookups do not), as counters of torch and of papers do it. A causal
query meets on average half of its sequence; kernels that compute the masked half too spend more, which is theirs to explain.
"""

from __future__ import annotations

from ridgepoint.catalog.spec import ModelSpec
from ridgepoint.cost.arrays import Num
from ridgepoint.cost.attention import mixer_flops
from ridgepoint.cost.batch import Group
from ridgepoint.cost.shape import shape_of


def linear_flops_per_token(spec: ModelSpec) -> float:
    """2 x the weights one token is multiplied with in the layers (K of E experts), without the head."""
    return 2.0 * sum(kind.count * kind.matmul_params for kind in shape_of(spec).kinds)


def head_flops_per_row(spec: ModelSpec) -> float:
    return 2.0 * spec.vocab_size * spec.d_model


def attention_flops(spec: ModelSpec, new: Num, cached: Num = 0.0) -> Num:
    """Scores and values (and indexer, and recurrence) of one sequence adding `new` tokens over `cached`, all layers."""
    group = Group(count=1.0, new=new, cached=cached)
    return sum((kind.count * mixer_flops(kind, group) for kind in shape_of(spec).kinds), 0.0)


def forward_flops(spec: ModelSpec, new: Num, cached: Num = 0.0, *, logit_rows: Num = 1.0) -> Num:
    """One sequence's forward pass over `new` tokens, the head on `logit_rows` of them, and so what follows the last attention."""
    unwanted = 2.0 * shape_of(spec).last.after_attention_params * (new - logit_rows)
    layers = linear_flops_per_token(spec) * new - unwanted + attention_flops(spec, new, cached)
    return layers + head_flops_per_row(spec) * logit_rows


def forward_flops_per_token(spec: ModelSpec, sequence: float) -> float:
    """Per token of a packed causal sequence, the head on every token, as in training."""
    return float(forward_flops(spec, sequence, logit_rows=sequence)) / sequence
