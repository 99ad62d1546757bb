"""Straight into packed weights: the bits of load-then-pack for plain checkpoints, the stored codes for quantised ones."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch

from ridgepoint.errors import ConfigError
from ridgepoint.kernels import native
from ridgepoint.kernels.packed import Packed, whole_format
from ridgepoint.models.checkpoint import load, open_checked
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.load_packed import load_packed, plan, summary
from ridgepoint.models.pack import matrices_of, pack_decoder
from ridgepoint.models.weight_cache import load_cached
from ridgepoint.nn.context import CausalContext
from ridgepoint.quantize.convert import convert
from ridgepoint.quantize.formats import FORMATS, format_named

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")
KERNEL_FORMAT = {"int8": "int8", "int8-g128": "int8-128", "int4-g32": "int4-32", "int4-g128": "int4-128",
                 "fp8-block": "fp8", "mxfp4": "mxfp4"}  # fmt: skip

WHOLE = whole_format(torch.bfloat16) if native.available() else ""


def packed_of(decoder: Decoder) -> dict[str, Packed]:
    names = {id(module): name for name, module in decoder.named_modules()}
    found = {f"{names[id(module)]}.{leaf}": getattr(module, leaf) for module, leaf, _ in matrices_of(decoder)}
    return found if decoder.packed_head is None else found | {"tied head": decoder.packed_head}


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
@pytest.mark.parametrize(("dtype", "fmt"), [(torch.bfloat16, None), (torch.bfloat16, "int4-32"), (torch.float32, None)])
def test_a_plain_checkpoint_packs_to_the_same_bits(
    tmp_path: Path, family: str, dtype: torch.dtype, fmt: str | None
) -> None:
    folder = checkpoints.write(tmp_path / "model", family)
    straight, twice = load_packed(folder, dtype, fmt), pack_decoder(load(folder, dtype), fmt)
    ours, theirs = packed_of(straight), packed_of(twice)
    assert ours.keys() == theirs.keys()
    for name, packed in ours.items():
        assert (packed.format, packed.shape, packed.stacked, packed.glu) == (
            theirs[name].format, theirs[name].shape, theirs[name].stacked, theirs[name].glu
        )  # fmt: skip
        assert np.array_equal(packed.data, theirs[name].data), name
    left, right = dict(straight.named_parameters()), dict(twice.named_parameters())
    assert left.keys() == right.keys()
    assert all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_stored_codes_are_kept(tmp_path: Path, family: str, fmt: str) -> None:
    """What a packed weight stands for is, to the bit, what the slow path decodes from the file."""
    source = checkpoints.write(tmp_path / "plain", family)
    convert(source, tmp_path / "model", format_named(fmt))
    decoded = dict(load(tmp_path / "model", torch.float32).named_parameters())
    decoder = load_packed(tmp_path / "model")
    formats = set()
    for name, packed in packed_of(decoder).items():
        wanted = decoded["embed.weight" if name == "tied head" else name]
        assert torch.equal(packed.dense().view(wanted.shape), wanted), name
        formats.add(packed.format)
    assert KERNEL_FORMAT[fmt] in formats <= {KERNEL_FORMAT[fmt], "int8", WHOLE, "f32"}
    assert ("int8" in formats) == (fmt == "int8" or (fmt.startswith("int4") and family != "granitemoe"))


def test_an_asked_for_format_wins_and_stored_codes_serve_it(tmp_path: Path) -> None:
    source = checkpoints.write(tmp_path / "plain", "qwen3_moe")
    convert(source, tmp_path / "model", format_named("int4-g32"))
    as_bf16 = packed_of(load_packed(tmp_path / "model", fmt="bf16"))
    assert {packed.format for packed in as_bf16.values()} == {"bf16", "f32"}
    as_int4 = packed_of(load_packed(tmp_path / "model", fmt="int4-32"))
    stored = packed_of(load_packed(tmp_path / "model"))
    for name, packed in stored.items():
        if packed.format == "int4-32":
            assert np.array_equal(as_int4[name].data, packed.data)
            assert torch.equal(as_bf16[name].dense(), packed.dense().bfloat16().float())
    with pytest.raises(ConfigError, match="'int3' is unknown"):
        load_packed(source, fmt="int3")
    with pytest.raises(ConfigError, match="a float32 decoder packs as f32"):
        load_packed(source, torch.float32, "int8")


def test_a_form_the_kernels_lack_is_multiplied_out_and_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    convert(checkpoints.write(tmp_path / "plain", "qwen3"), tmp_path / "model", format_named("int4-g32"))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    stored[name] = stored[name].float() * 1.001
    save_file(stored, tmp_path / "model" / "model.safetensors")
    targets = plan(*open_checked(tmp_path / "model"), torch.bfloat16, None)
    told = summary(targets)
    assert (
        f"{WHOLE} instead of int4 with scales of F32, which its kernels keep in bf16 (1)" in told
        and "int4-32 as stored" in told
    )
    packed = packed_of(load_packed(tmp_path / "model"))
    decoded = dict(load(tmp_path / "model", torch.bfloat16).named_parameters())
    assert torch.equal(packed["layers.0.ffn.down.weight"].dense()[0], decoded["layers.0.ffn.down.weight"].float())


def spread_out(folder: Path, name: str) -> Path:
    """The same checkpoint with weights of one matrix scaled by powers of two far apart."""
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    powers = torch.arange(stored[name].numel()).remainder(64).sub(32).view(stored[name].shape)
    stored[name] = torch.ldexp(stored[name].float(), powers).bfloat16()
    save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.skipif(WHOLE != "bf16-12", reason="the processor's kernels do not read bf16 in 12 bits")
@pytest.mark.parametrize("matrix", ["mlp.experts.2.down_proj", "self_attn.q_proj"])
def test_what_12_bits_cannot_hold_stays_plain_and_is_said(tmp_path: Path, matrix: str) -> None:
    folder = spread_out(checkpoints.write(tmp_path / "model", "qwen3_moe"), f"model.layers.1.{matrix}.weight")
    loaded = load_cached(folder, torch.bfloat16, None, tmp_path / "cache", print, smallest_bytes=0)
    assert loaded.keeping is not None
    loaded.keeping.join()
    packed = packed_of(loaded.decoder)
    plain = {name for name, weight in packed.items() if weight.format == "bf16"}
    assert len(plain) == 1 and {loaded.targets[name].format for name in plain} == {"bf16"}
    assert "bf16 instead of bf16-12, for its exponents (1)" in summary(loaded.targets)
    decoded = dict(load(folder, torch.float32).named_parameters())
    for name, weight in packed.items():
        wanted = decoded["embed.weight" if name == "tied head" else name]
        assert torch.equal(weight.dense().view(wanted.shape), wanted), name
    again = load_cached(folder, torch.bfloat16, None, tmp_path / "cache", print, smallest_bytes=0)
    assert again.keeping is None, "it was not taken from the cache"
    assert all(np.array_equal(weight.data, packed[name].data) for name, weight in packed_of(again.decoder).items())


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_logits_are_those_of_the_decoded_model(tmp_path: Path, family: str) -> None:
    """The packed int8 model and the dequantised one in bf16 are as far from the dequantised one in float32: by the median of
    tokens, since a near tie between experts may fall either way."""
    convert(checkpoints.write(tmp_path / "plain", family), tmp_path / "model", format_named("int8"))
    ids = torch.arange(1, 60)
    with torch.no_grad():
        truth = load(tmp_path / "model", torch.float32)(ids, CausalContext(1, len(ids)))
        bf16 = load(tmp_path / "model", torch.bfloat16)(ids, CausalContext(1, len(ids)))
        packed = load_packed(tmp_path / "model")(ids, CausalContext(1, len(ids)))
    ours, theirs = ((logits - truth).square().mean(-1).median().sqrt() for logits in (packed, bf16))
    assert 0 < float(ours) <= 1.25 * float(theirs)
