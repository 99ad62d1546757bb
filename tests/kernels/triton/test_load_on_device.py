"""A quantised checkpoint read straight into what the GPU's kernels multiply with: its codes, and the steps they give.

Where there is no GPU a CPU tensor stands in for the device's, and the kernels are interpreted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import checkpoints
import pytest
import torch
from products import DEVICE, error
from safetensors.torch import load_file, save_file

from ridgepoint.engine.device_sampler import NUM_COLUMNS, DeviceSampler
from ridgepoint.engine.prediction import precision_of
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import dispatch
from ridgepoint.kernels.device_weight import ZERO_CODES, DeviceWeight, _from_words
from ridgepoint.models.checkpoint import load, open_checked
from ridgepoint.models.decoder import Decoder
from ridgepoint.models.load_packed import load_packed, plan, summary
from ridgepoint.models.pack import matrices_of, pack_by_role
from ridgepoint.models.paged import KVCache, StepInputs
from ridgepoint.models.rooms import DeviceRooms
from ridgepoint.models.staging import Staging
from ridgepoint.models.step import EagerStep, load_on_device, make_device_step
from ridgepoint.models.stored import form_of, read_codes
from ridgepoint.quantize.convert import convert
from ridgepoint.quantize.formats import format_named

ROOMS = DeviceRooms(torch.device(DEVICE))
# Heads of which q, k and v have whole blocks of 128 rows.
SMALL = {"num_hidden_layers": 1, "vocab_size": 64, "head_dim": 64, "num_attention_heads": 2}
LATENT = {"num_hidden_layers": 2, "head_dim": None, "num_attention_heads": 4}
# family and stored format: formats of the experts, of the other matrices, of the head
CASES = {
    ("gpt_oss", "mxfp4"): ("mxfp4", "bf16", "bf16"),
    ("qwen3_moe", "fp8-block"): ("fp8_block", "fp8_block", "bf16"),
    ("qwen3_moe", "int4-g32"): ("int4_g32", "int4_g32", "int8"),
    ("qwen3_moe", "int4-g128"): ("int4", "int4", "int8"),
    ("qwen3_moe", "int8"): ("int8", "int8", "int8"),
    ("qwen3_moe", "int8-g128"): ("int8_g128", "int8_g128", "int8_g128"),
    ("qwen3_moe", "mxfp4"): ("mxfp4", "mxfp4", "bf16"),
}


@pytest.fixture(autouse=True)
def _triton_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where kernels are interpreted the CPU takes the GPU's order."""
    monkeypatch.setitem(dispatch.ORDER, "cpu", ("triton", "cpu", "reference"))
    dispatch._chosen.clear()
    yield
    dispatch._chosen.clear()


def stored_in(folder: Path, family: str, fmt: str, **changes: object) -> Path:
    convert(checkpoints.write(folder / "plain", family, **SMALL | changes), folder / fmt, format_named(fmt))
    return folder / fmt


def matrices(decoder: Decoder) -> dict[str, DeviceWeight | torch.Tensor]:
    names = {id(module): name for name, module in decoder.named_modules()}
    return {f"{names[id(module)]}.{leaf}": getattr(module, leaf) for module, leaf, _ in matrices_of(decoder)}


def logits_of(decoder: Decoder, rows: Sequence[int] = range(5)) -> torch.Tensor:
    """Of a prompt of five tokens through the paged cache, as an engine runs it."""
    cache = KVCache(decoder.spec, 2, 16, decoder.dtype, torch.device(DEVICE))
    given = {
        "token_ids_T": [3, 9, 27, 5, 40], "positions_T": range(5), "slots_T": range(5), "query_starts_B1": [0, 5],
        "context_lens_B": [5], "block_tables_BN": [[0]], "logit_rows_R": rows,
    }  # fmt: skip
    inputs = StepInputs(
        **{name: torch.tensor(values, dtype=torch.int64, device=DEVICE) for name, values in given.items()}
    )
    with torch.inference_mode():
        return EagerStep(decoder, cache).run(inputs)


def assert_same_codes(weight: DeviceWeight, folder: Path, name: str) -> None:
    """Of a matrix that is one stored tensor, or of a stack of them: the signs of zeros too."""
    source, config = open_checked(folder)
    for piece in (piece for piece in config.pieces if piece.param == name):
        form = form_of(source.files, config.storage, piece)
        for index in range(form.matrices or 1):
            stored = read_codes(source.files, form, None if form.matrices is None else index).codes_OI.int()
            matrix = index if piece.index is None else piece.index
            kept = _from_words(weight.codes[matrix].flatten(0, 1), weight.kind)[:, : weight.inputs].cpu()
            assert torch.equal(kept - ZERO_CODES.get(weight.kind, 0), stored), (name, matrix)


@pytest.mark.parametrize(("family", "fmt"), CASES)
def test_stored_codes_are_kept(tmp_path: Path, family: str, fmt: str) -> None:
    folder = stored_in(tmp_path, family, fmt)
    decoder, decoded = load_packed(folder, rooms=ROOMS), load(folder, torch.float32)
    wanted = dict(decoded.named_parameters())
    for name, weight in matrices(decoder).items():
        if isinstance(weight, DeviceWeight):
            assert torch.equal(weight.dense().cpu().view(wanted[name].shape), wanted[name]), name
        else:
            assert torch.equal(weight.cpu(), wanted[name].to(weight.dtype)) and weight.device.type == DEVICE, name
        if name.endswith(("w_down_EDF", "mixer.o.weight")) and isinstance(weight, DeviceWeight):
            assert_same_codes(weight, folder, name)
    precision = precision_of(decoder)
    assert (precision.experts, precision.weights, precision.head) == CASES[family, fmt]


@pytest.mark.parametrize(
    ("family", "fmt"), [("gpt_oss", "mxfp4"), ("qwen3_moe", "fp8-block"), ("deepseek_v3", "int4-g32")]
)
def test_a_step_gives_the_logits_of_the_decoded_model(tmp_path: Path, family: str, fmt: str) -> None:
    folder = stored_in(tmp_path, family, fmt, **(LATENT if family == "deepseek_v3" else {}))
    packed, decoded = load_packed(folder, rooms=ROOMS), load(folder, torch.bfloat16, device=DEVICE)
    assert any(isinstance(weight, DeviceWeight) for weight in matrices(packed).values())
    every = logits_of(packed)
    assert error(every, logits_of(decoded)) <= 2e-2
    for rows in ([4], [3, 1]):
        assert error(logits_of(packed, rows), every[rows]) <= 2e-2
    assert logits_of(packed, []).shape == (0, every.shape[1])


def test_fp8_as_stored_may_meet_rounded_activations(tmp_path: Path) -> None:
    """The same codes and scales, another product; the cost model is told so."""
    folder = stored_in(tmp_path, "qwen3_moe", "fp8-block")
    plain, rounded = (load_packed(folder, fmt=fmt, rooms=ROOMS) for fmt in (None, "fp8-a8"))
    pairs = [(w, matrices(plain)[name]) for name, w in matrices(rounded).items() if isinstance(w, DeviceWeight)]
    both = [(one, other) for one, other in pairs if isinstance(other, DeviceWeight)]
    assert both and all(one.format == "fp8-a8" and other.format == "fp8" for one, other in both)
    assert all(torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales) for one, other in both)
    assert precision_of(rounded).activations == "fp8" and precision_of(plain).activations == "bf16"
    assert 0 < error(logits_of(rounded), logits_of(plain)) <= 0.1


def told_of(folder: Path, dtype: torch.dtype = torch.bfloat16) -> str:
    return summary(plan(*open_checked(folder), dtype, None, ROOMS))


def test_latents_stay_tensors(tmp_path: Path) -> None:
    folder = stored_in(tmp_path, "deepseek_v3", "fp8-block", **LATENT)
    decoder, decoded = load_packed(folder, rooms=ROOMS), load(folder)
    for one, other in zip(decoder.layers, decoded.layers, strict=True):
        for name in ("w_uk_HNC", "w_uv_HVC"):
            assert torch.equal(getattr(one.mixer, name).cpu(), getattr(other.mixer, name)), name


def test_blocks_that_the_kernels_cut_otherwise_are_multiplied_out(tmp_path: Path) -> None:
    """Queries of 64 rows put keys' scales into the middle of a block."""
    folder = stored_in(tmp_path, "qwen3_moe", "fp8-block", head_dim=32)
    assert "bf16 instead of fp8 whose scales differ within a block of 128 x 128 (1)" in told_of(folder)
    assert "fp8 as stored (3)" in told_of(folder)
    qkv, decoded = (matrices(d)["layers.0.mixer.qkv.weight"] for d in (load_packed(folder, rooms=ROOMS), load(folder)))
    assert isinstance(qkv, torch.Tensor) and torch.equal(qkv.cpu(), decoded)


def test_scales_that_the_kernels_cannot_hold_are_multiplied_out(tmp_path: Path) -> None:
    folder = stored_in(tmp_path, "gpt_oss", "mxfp4")
    file = folder / "model.safetensors"
    stored = load_file(file)
    scales = stored["model.layers.0.mlp.experts.down_proj_scales"]
    for exponent, kept in ((128, True), (129, False)):
        scales[1, 2, 0] = exponent
        save_file(stored, file)
        told, found = told_of(folder), matrices(load_packed(folder, rooms=ROOMS))
        experts = {name: weight for name, weight in found.items() if ".experts." in name}
        assert ("mxfp4 as stored (2)" in told) == kept
        assert ("bf16 instead of mxfp4 with scales above 2^1 (1)" in told) != kept
        assert ("bf16 instead of experts in mxfp4 and bf16, which are multiplied in one (1)" in told) != kept
        assert {type(weight) for weight in experts.values()} == ({DeviceWeight} if kept else {torch.nn.Parameter})
        wanted = dict(load(folder, torch.float32).named_parameters())
        for name, weight in experts.items():
            values = weight.dense() if isinstance(weight, DeviceWeight) else weight.float()
            assert torch.equal(values.cpu(), wanted[name])


@pytest.mark.parametrize("family", ["granitemoe", "gpt_oss"])
def test_an_asked_for_format_is_that_of_packing_afterwards(tmp_path: Path, family: str) -> None:
    """A tied head is packed beside the embedding it is, and codes stored in the format asked for serve it."""
    plain = checkpoints.write(tmp_path / "model", family, **SMALL)
    straight, twice = load_packed(plain, fmt="fp8", rooms=ROOMS), pack_by_role(load(plain, device=DEVICE), "fp8")
    pairs = list(zip(matrices(straight).values(), matrices(twice).values(), strict=True))
    if family == "granitemoe":
        pairs.append((straight.packed_head, twice.packed_head))
    for ours, theirs in pairs:
        assert type(ours) is type(theirs)
        names = ("codes", "scales") if isinstance(ours, DeviceWeight) else ("data",)
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in names)
    if family == "gpt_oss":
        convert(plain, tmp_path / "stored", format_named("mxfp4"))
        stored, asked = (load_packed(tmp_path / "stored", fmt=fmt, rooms=ROOMS) for fmt in (None, "mxfp4"))
        name = "layers.0.ffn.experts.w_down_EDF"
        assert torch.equal(matrices(stored)[name].codes, matrices(asked)[name].codes)
        assert isinstance(matrices(asked)["head.weight"], DeviceWeight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_multiplied_out(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = stored_in(tmp_path, "qwen3_moe", "int8")
    assert "instead of int8, whose kernels take bf16 activations (5)" in told_of(folder, dtype)
    decoder, decoded = load_packed(folder, dtype, rooms=ROOMS), load(folder, dtype)
    wanted = dict(decoded.named_parameters())
    assert all(torch.equal(value.cpu(), wanted[name]) for name, value in decoder.named_parameters())


def test_what_is_loaded_how_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, told = stored_in(tmp_path, "gpt_oss", "mxfp4"), []
    load_on_device(folder, torch.bfloat16, ROOMS, None, told.append)
    assert told[0].startswith("weight cache off: it keeps what the CPU's kernels read")
    assert told[1] == "kernels triton, weights as bf16 (3), mxfp4 as stored (2)"
    for dtype, fmt in ((torch.bfloat16, "int8-a8"), (torch.float16, "int8"), (torch.bfloat16, "f32")):
        with pytest.raises(ConfigError, match=f"'{fmt}' has no kernel"):
            load_on_device(folder, dtype, ROOMS, fmt, told.append)
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    load_on_device(folder, torch.bfloat16, ROOMS, None, told.append)
    assert told[-1].startswith("kernels torch: Triton is not installed, weights as bf16 (3), bf16 instead of mxfp4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_types_whose_experts_wait_for_the_host_are_not_captured(tmp_path: Path, dtype: torch.dtype) -> None:
    decoder = load_packed(checkpoints.write(tmp_path / "model", "qwen3_moe", **SMALL), dtype, rooms=ROOMS)
    probe = torch.empty(0, dtype=dtype, device=DEVICE)
    assert dispatch.reads_on_host("moe_experts", probe) == (dtype != torch.bfloat16)
    device = torch.device(DEVICE)
    staging = Staging(max_tokens=4, max_seqs=2, max_blocks_per_seq=2, num_columns=NUM_COLUMNS, device=device)
    _, why = make_device_step(
        decoder, KVCache(decoder.spec, 4, 16, dtype, device), staging, DeviceSampler(staging.columns, decoder.spec.vocab_size), max_seqs=2,
        max_context=32, scratch_block=3, capture=lambda body: body,
    )  # fmt: skip
    if dtype == torch.bfloat16:
        assert why.startswith("step captured")
    else:
        assert why.startswith("step eager: the host must read numbers for moe_experts") and str(dtype) in why
