"""Training's arrangement of the decoder against the layers' own paths, and what workers share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_recipe import tiny

from ridgepoint.catalog.spec import ClampedSwiGlu, GqaSpec, ModelSpec, MoeSpec
from ridgepoint.kernels.dispatch import forced
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.context import CausalContext
from ridgepoint.train.family import spec_of
from ridgepoint.train.ops import TrainingOps
from ridgepoint.train.weights import compute_copy, correction_biases, initial_masters, refresh, worker_view

TRAINED = spec_of(tiny().model, 60)
BATCH, LENGTH = 2, 40
# float32 sums in another order: relative to the largest number of each tensor
TOLERANCE_FRAC = 1e-5


def other_layers(spec: ModelSpec) -> ModelSpec:
    """Windows, sinks, clamped activations and biases: nothing that training has pieces of its own for."""
    layers = []
    for layer in spec.layers:
        assert isinstance(layer.mixer, GqaSpec)
        ffn = layer.ffn
        if isinstance(ffn, MoeSpec):
            ffn = replace(ffn, activation=ClampedSwiGlu(alpha=1.7, limit=7.0), bias=True, shared=None)
        layers.append(replace(layer, mixer=replace(layer.mixer, sinks=True, qk_norm="none"), ffn=ffn, window=7))
    return replace(spec, layers=tuple(layers))


def _decoder(spec: ModelSpec) -> Decoder:
    decoder = initial_masters(spec, 5)
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for tensor in [*decoder.parameters(), *correction_biases(decoder).values()]:
            tensor += 0.1 * torch.randn(tensor.shape, generator=draw)
    return decoder


@pytest.mark.parametrize("spec", [TRAINED, other_layers(TRAINED)], ids=["trained", "other"])
def test_loss_and_gradients_are_those_of_the_plain_layers(spec: ModelSpec) -> None:
    decoder = _decoder(spec)
    draw = torch.Generator().manual_seed(7)
    ids, targets = (torch.randint(0, 60, (BATCH, LENGTH), generator=draw) for _ in range(2))
    parameters = list(decoder.parameters())
    fast = TrainingOps(compiled=False).loss_sum(decoder, ids, targets)
    with forced("cpu"):
        logits_TV = decoder(ids.flatten(), CausalContext(BATCH, LENGTH))
        plain = F.cross_entropy(logits_TV, targets.flatten(), reduction="sum")
        want = torch.autograd.grad(plain, parameters)
    torch.testing.assert_close(fast, plain, rtol=TOLERANCE_FRAC, atol=0)
    for (name, _), got, grad in zip(
        decoder.named_parameters(), torch.autograd.grad(fast, parameters), want, strict=True
    ):
        assert float((got - grad).abs().max()) <= TOLERANCE_FRAC * float(grad.abs().max()), name


def test_workers_share_weights_and_count_alone() -> None:
    masters = _decoder(TRAINED)
    compute = compute_copy(masters, torch.bfloat16)
    one, two = worker_view(compute), worker_view(compute)
    refresh(compute, masters)
    (_, moe_one), (_, moe_two), (_, moe_masters) = (d.moe_layers()[0] for d in (one, two, masters))
    assert moe_masters.router.correction_E is not None
    moe_masters.router.correction_E += 1.0
    ids = torch.arange(24).view(1, 24)
    losses = [TrainingOps(compiled=False).loss_sum(decoder, ids, ids) for decoder in (one, one, two)]
    assert losses[0] == losses[1] == losses[2]
    assert moe_one.router.correction_E is moe_two.router.correction_E is moe_masters.router.correction_E
    first, second = moe_one.router.take_load(), moe_two.router.take_load()
    assert int(second.sum()) == 24 * tiny().model.top_k
    assert torch.equal(first, 2 * second)


def test_norms_and_routers_stay_float32() -> None:
    kinds = {name: p.dtype for name, p in compute_copy(_decoder(TRAINED), torch.bfloat16).named_parameters()}
    wide = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert wide == {name for name in kinds if "norm" in name or "router" in name}
