"""The decoder outside of checkpoints: it trains, in float32 and in bfloat16 over float32 weights, and it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ridgepoint.catalog.families import read_checkpoint_config
from ridgepoint.catalog.linear import kimi_delta
from ridgepoint.catalog.spec import HyperConnections, IndexerSpec, ModelSpec, ReluSquared
from ridgepoint.errors import CheckpointError
from ridgepoint.kernels.dispatch import forced
from ridgepoint.models.checkpoint import load, to_checkpoint
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.context import CausalContext

CONFIG = {
    "model_type": "glm4_moe", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "use_qk_norm": True, "rope_theta": 10000.0, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip


@pytest.fixture
def spec() -> ModelSpec:
    return read_checkpoint_config(CONFIG).spec


def loss_of(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    batch, length = ids.shape
    logits = decoder(ids.flatten(), CausalContext(batch, length)).view(batch, length, -1)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_gradients_are_those_of_the_definition(spec: ModelSpec) -> None:
    decoder = Decoder(spec, torch.float32)
    decoder.initialise(seed=1, std=0.3)
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2))

    def gradients() -> dict[str, torch.Tensor]:
        decoder.zero_grad()
        loss_of(decoder, ids).backward()
        return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}

    fast = gradients()
    with forced("reference"):
        slow = gradients()
    assert fast.keys() == slow.keys() == dict(decoder.named_parameters()).keys()
    for name, grad in fast.items():
        assert torch.allclose(grad, slow[name], rtol=1e-3, atol=1e-4 * float(slow[name].abs().max())), name


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_it_learns(spec: ModelSpec, compute_dtype: torch.dtype) -> None:
    """A repeated sequence is learnt by heart; weights stay float32, every token is counted."""
    decoder = Decoder(spec, torch.float32, compute_dtype=compute_dtype)
    decoder.initialise(seed=1)
    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    first = loss_of(decoder, ids).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = loss_of(decoder, ids)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.6 * first
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    assert [int(moe.router.take_load().sum()) for _, moe in decoder.moe_layers()] == [41 * 64 * 2] * 2


def test_what_was_trained_is_loaded_again_here_and_by_transformers(spec: ModelSpec, tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    decoder = Decoder(spec, torch.float32).eval()
    decoder.initialise(seed=3, std=0.3)
    for _, moe in decoder.moe_layers():
        assert moe.router.correction_E is not None
        moe.router.correction_E.normal_(0, 0.3)
    save_file(to_checkpoint(decoder), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ids = torch.arange(20)
    with torch.inference_mode():
        want = decoder(ids, CausalContext(1, 20))
        again = load(tmp_path, torch.float32)
        assert again.spec == spec and torch.equal(again(ids, CausalContext(1, 20)), want)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids[None]).logits[0]
    assert torch.allclose(theirs, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_initialise_is_repeatable_and_complete(spec: ModelSpec) -> None:
    first, second = Decoder(spec, torch.float32), Decoder(spec, torch.float32)
    for p in first.parameters():
        p.data.fill_(float("nan"))
    first.initialise(seed=5)
    second.initialise(seed=5)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixer": kimi_delta(64, num_heads=2, head_dim=8, conv=4, full_rank_gate=True)},
            "layer 0: mixer",
        ),
        ({"ffn": None}, "without feed-forward"),
        ({"indexer": IndexerSpec(num_heads=1, head_dim=1, top_k=1, block=1, weighted=True, fp8_keys=True)}, "indexer"),
        ({"kv_from_layer": 1}, "KV shared from layer 1"),
        ({"post_norms": True}, "norms after the mixer"),
    ],
)
def test_a_fact_it_cannot_execute_is_refused(spec: ModelSpec, changes: dict, message: str) -> None:
    layers = (replace(spec.layers[0], **changes), *spec.layers[1:])
    with pytest.raises(CheckpointError, match=message):
        Decoder(replace(spec, layers=layers), torch.float32, "meta")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("mixer", {"output_gate": "per_head"}, "a per_head output gate"),
        ("ffn", {"activation": ReluSquared()}, "activation ReluSquared"),
        ("ffn", {"latent_dim": 16}, "latent width of 16"),
    ],
)
def test_a_fact_inside_a_layer_it_cannot_execute_is_refused(
    spec: ModelSpec, part: str, changes: dict, message: str
) -> None:
    layer = spec.layers[-1]
    inner = replace(getattr(layer, part), **changes)
    with pytest.raises(CheckpointError, match=f"layer {spec.num_layers - 1}: .*{message}.* cannot be executed"):
        Decoder(replace(spec, layers=(*spec.layers[:-1], replace(layer, **{part: inner}))), torch.float32, "meta")


def test_several_residual_streams_are_refused(spec: ModelSpec) -> None:
    with pytest.raises(CheckpointError, match=r"HyperConnections\(streams=4\) cannot be executed"):
        Decoder(replace(spec, residual=HyperConnections(streams=4)), torch.float32, "meta")


def test_importing_families_does_not_import_torch() -> None:
    import subprocess

    src = Path(__file__).parents[2] / "src"
    code = "import sys; from ridgepoint.catalog.families import FAMILIES, _module; [_module(f) for f in FAMILIES]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(src), "PATH": ""})
