"""A decoder whose weights are packed for the GPU: every matrix is swapped, and the layers compute with what was packed."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from products import DEVICE, error

from ridgepoint.catalog.families import read_checkpoint_config
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import dispatch
from ridgepoint.kernels.device_weight import DeviceWeight
from ridgepoint.kernels.moe_experts.combine import summed
from ridgepoint.kernels.moe_experts.unsummed import UnsummedRows
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.pack import pack_by_role
from ridgepoint.nn.ffn import Experts
from ridgepoint.nn.linear import Linear


@pytest.fixture
def _triton_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where kernels are interpreted the CPU takes the GPU's order."""
    monkeypatch.setitem(dispatch.ORDER, "cpu", ("triton", "cpu", "reference"))
    dispatch._chosen.clear()
    yield
    dispatch._chosen.clear()


CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 96, "hidden_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64,
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "rope_scaling": None, "max_position_embeddings": 64, "tie_word_embeddings": False, "attention_bias": False,
    "use_sliding_window": False, "sliding_window": None, "bos_token_id": 0, "eos_token_id": 1, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = Decoder(read_checkpoint_config(CONFIG).spec, torch.bfloat16, DEVICE)
    made.initialise(seed=1, std=0.08)
    return made.eval().requires_grad_(False)


@pytest.mark.usefixtures("_triton_first")
@pytest.mark.parametrize("fmt", ["fp8", "mxfp4"])
def test_layers_compute_with_what_was_packed(decoder: Decoder, fmt: str) -> None:
    packed, plain = pack_by_role(copy.deepcopy(decoder), fmt), copy.deepcopy(decoder)
    swapped = 0
    for one, other in zip(packed.modules(), plain.modules(), strict=True):
        names = (
            ["weight"]
            if isinstance(one, Linear)
            else ["w_gate_up_E2FD", "w_down_EDF"]
            if isinstance(one, Experts)
            else []
        )
        for name in names:
            weight = getattr(one, name)
            assert isinstance(weight, DeviceWeight) and weight.format == fmt
            getattr(other, name).data.copy_(weight.dense().view(getattr(other, name).shape))
            swapped += 1
    assert swapped >= 5
    x = torch.randn(5, decoder.spec.d_model, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    with torch.inference_mode():
        for one, other in zip(packed.layers, plain.layers, strict=True):
            got, want = one.ffn(x), other.ffn(x)
            assert isinstance(got, UnsummedRows), "the next norm sums experts on its way"
            assert error(summed(got), summed(want)) <= 2e-2
            for a, b in zip(packed.norm.add(x, got, 1.0), packed.norm.add(x, summed(got), 1.0), strict=True):
                assert torch.equal(a, b)
        assert error(packed.logits(x), plain.logits(x)) <= 1e-2


def test_a_decoder_that_cannot_be_packed_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match="no GPU kernel"):
        pack_by_role(copy.deepcopy(decoder), "int2")
