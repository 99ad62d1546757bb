"""Loading: every fault names its tensor and file, damaged files never crash, storage formats decode, memory is bounded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import parity
from ridgepoint.errors import CheckpointError
from ridgepoint.models.checkpoint import load, to_checkpoint
from ridgepoint.models.decoder import Decoder

SRC = Path(__file__).parents[2] / "src"
ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    config = {
        **parity.MOE,
        "head_dim": 8,
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    parity.make_checkpoint(parity.Case("tiny", "qwen3_moe", config), folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(scope="module")
def original_weights(original: Path) -> dict[str, torch.Tensor]:
    return to_checkpoint(load(original, torch.float32))


def weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    return to_checkpoint(decoder)


def same(a: Decoder, b: Decoder) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / ONE)
    change(tensors)
    save_file(tensors, folder / ONE)


def reconfigure(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def shard(folder: Path) -> dict[str, str]:
    """Split the one file in two with an index; returns the map."""
    tensors = load_file(folder / ONE)
    (folder / ONE).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


# ---------------------------------------------------------------- what loads


def test_what_is_loaded_is_what_was_stored(folder: Path) -> None:
    stored, loaded = load_file(folder / ONE), weights(load(folder, torch.float32))
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_shards_load_like_one_file(original: Path, folder: Path) -> None:
    shard(folder)
    assert same(load(folder, torch.float32), load(original, torch.float32))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_types_are_converted(folder: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    edit(folder, lambda t: t.update({name: value.to(stored) for name, value in t.items()}))
    tensors = load_file(folder / ONE)
    for name, value in weights(load(folder, wanted)).items():
        router = name.endswith("mlp.gate.weight")
        assert value.dtype == (torch.float32 if router else wanted)
        assert torch.equal(value, tensors[name].to(value.dtype))


def test_progress_goes_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(folder, progress=True)
    assert capsys.readouterr().out == ""


def test_a_shorter_context_can_be_served_and_a_longer_one_cannot(folder: Path) -> None:
    assert load(folder, max_context=32).spec.max_context == 32
    with pytest.raises(CheckpointError, match="max_context 257"):
        load(folder, max_context=257)


def test_tied_head_stored_twice_must_be_equal(folder: Path) -> None:
    reconfigure(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'lm_head.weight' differs"):
        load(folder)
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert load(folder).head is None


def test_multi_token_prediction_layers_are_left_out(tmp_path: Path) -> None:
    case = next(case for case in parity.CASES if case.name == "glm4_moe")
    parity.make_checkpoint(case, tmp_path)
    edit(tmp_path, lambda t: t.update({"model.layers.3.eh_proj.weight": torch.zeros(4, 4)}))
    load(tmp_path)
    edit(tmp_path, lambda t: t.update({"model.layers.2.eh_proj.weight": torch.zeros(4, 4)}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.eh_proj\.weight"):
        load(tmp_path)


# ---------------------------------------------------------------- faults of tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.0.mlp.experts.1.up_proj.weight"), r"experts\.1\.up_proj\.weight' is missing"),
        (
            lambda t: t.update({"model.layers.0.extra": torch.zeros(2)}),
            r"model\.safetensors: tensor 'model\.layers\.0\.extra'",
        ),
        (lambda t: t.update({"model.norm.weight": torch.zeros(17)}), r"'model\.norm\.weight' has shape \[17\].*\[16\]"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].int()}), r"'lm_head\.weight' has type I32; allowed"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)}),
            r"'lm_head\.weight' has type F8_E4M3; allowed",
        ),
    ],
    ids=["missing", "extra", "shape", "integer", "fp8 without scales"],
)
def test_a_wrong_tensor_is_named_with_its_file(folder: Path, change, message: str) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert ONE in str(caught.value)


def test_a_truncated_file_names_the_first_tensor_cut(folder: Path) -> None:
    data = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: tensor '.*' ends at byte"):
        load(folder)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_loads_identically(
    original: Path, original_weights: dict[str, torch.Tensor], tmp_path: Path, data: st.DataObject
) -> None:
    """Truncation anywhere, or any changed byte of the header: never a crash, never other weights."""
    folder = tmp_path / "damaged"
    shutil.copytree(original, folder, dirs_exist_ok=True)
    raw = bytearray((original / ONE).read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    (folder / ONE).write_bytes(raw)
    try:
        loaded = load(folder, torch.float32)
    except CheckpointError as error:
        assert str(folder) in str(error)
    else:
        got = weights(loaded)
        assert got.keys() == original_weights.keys()
        assert all(torch.equal(got[name], original_weights[name]) for name in got)


# ---------------------------------------------------------------- faults of files


@pytest.mark.parametrize("where", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin", 7])
def test_an_index_cannot_point_outside(folder: Path, where: object) -> None:
    weight_map = shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, "lm_head.weight": where}}))
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head.weight' is said to be in .* which is no shard's name"):
        load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    weight_map = shard(folder)
    (folder / weight_map["lm_head.weight"]).unlink()
    with pytest.raises(CheckpointError, match=weight_map["lm_head.weight"] + " is missing"):
        load(folder)


def test_index_and_shards_must_agree(folder: Path) -> None:
    weight_map = shard(folder)
    other = next(file for file in weight_map.values() if file != weight_map["lm_head.weight"])
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, "lm_head.weight": other}}))
    with pytest.raises(CheckpointError, match=rf"{other}: tensor 'lm_head.weight' is missing"):
        load(folder)
    del weight_map["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head.weight' is here, but the index says None"):
        load(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"weight_map": 3}', "[" * 100_000])
def test_a_corrupt_index_is_refused(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        load(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / ONE).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never loaded"):
        load(folder)


def test_no_config_no_folder_no_hub_id(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(CheckpointError, match="is a file"):
        load(folder / ONE)


def test_an_unreachable_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only data files are asked for, and whatever the client raises becomes one error."""
    import huggingface_hub

    asked = {}

    def offline(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        raise ConnectionError("no route\nlong traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"^owner/model: cannot be downloaded: ConnectionError: no route \(hint"):
        load("owner/model")
    assert asked["name"] == "owner/model"
    assert not any(
        pattern.endswith((".py", ".bin", ".pt", "*")) and pattern != "tokenizer*" for pattern in asked["patterns"]
    )


# ---------------------------------------------------------------- storage formats

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 8], "activation_scheme": "dynamic"}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "targets": ["Linear"],
            "input_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


def is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


def test_fp8_blocks_are_decoded(folder: Path) -> None:
    plain: dict[str, torch.Tensor] = {}

    def quantise(t: dict[str, torch.Tensor]) -> None:
        for name in [name for name in t if is_projection(name)]:
            stored = t[name].to(torch.float8_e4m3fn)
            rows, columns = stored.shape
            scale = torch.rand(-(-rows // 16), -(-columns // 8), generator=torch.Generator().manual_seed(1)) + 0.5
            plain[name] = stored.float()
            for i in range(rows):
                for j in range(columns):
                    plain[name][i, j] *= scale[i // 16, j // 8]
            t[name], t[f"{name}_scale_inv"] = stored, scale

    edit(folder, quantise)
    reconfigure(folder, quantization_config=FP8)
    loaded = weights(load(folder, torch.float32))
    assert plain and all(torch.equal(loaded[name], plain[name]) for name in plain)


@pytest.mark.parametrize("groups", [1, 2])
def test_int8_channels_are_decoded(folder: Path, groups: int) -> None:
    plain: dict[str, torch.Tensor] = {}

    def quantise(t: dict[str, torch.Tensor]) -> None:
        for name in [name for name in t if is_projection(name)]:
            grouped = t[name].unflatten(1, (groups, -1))
            scale = grouped.abs().amax(-1) / 127
            stored = (grouped / scale[..., None]).round().to(torch.int8)
            plain[name] = (stored.float() * scale[..., None]).flatten(1)
            t[name], t[f"{name}_scale"] = stored.flatten(1), scale

    before = weights(load(folder, torch.float32))
    edit(folder, quantise)
    (group,) = INT8["config_groups"].values()
    schemes = [{"strategy": "group", "group_size": size} for size in (8, 16, 32)] if groups == 2 else [{}]
    config_groups = {str(i): {**group, "weights": {**group["weights"], **one}} for i, one in enumerate(schemes)}
    reconfigure(folder, quantization_config={**INT8, "config_groups": config_groups})
    loaded = weights(load(folder, torch.float32))
    for name, value in plain.items():
        assert torch.allclose(loaded[name], value)
        assert float((loaded[name] - before[name]).abs().max()) <= float(before[name].abs().max()) / 127


def test_mxfp4_experts_are_decoded(tmp_path: Path) -> None:
    """Written by hand from the format's definition: low nibble first, value times 2^(scale - 127)."""
    config = {**parity.LOCAL, "head_dim": 16, "hidden_size": 64, "intermediate_size": 32, "sliding_window": 8}
    parity.make_checkpoint(parity.Case("oss", "gpt_oss", {**config, "num_hidden_layers": 2}), tmp_path)
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table += [-value for value in table]
    g, plain = torch.Generator().manual_seed(2), {}

    def quantise(t: dict[str, torch.Tensor]) -> None:
        for name in [name for name in t if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name]:
            experts, num_in, num_out = t.pop(name).shape
            blocks = torch.randint(0, 256, (experts, num_out, num_in // 32, 16), generator=g, dtype=torch.uint8)
            scales = torch.randint(120, 128, (experts, num_out, num_in // 32), generator=g, dtype=torch.uint8)
            values = torch.tensor([[table[b & 15], table[b >> 4]] for b in blocks.flatten().tolist()])
            values = values.view(experts, num_out, num_in // 32, 32) * 2.0 ** (scales.float() - 127)[..., None]
            plain[name] = values.flatten(2).transpose(1, 2)
            t[f"{name}_blocks"], t[f"{name}_scales"] = blocks, scales

    edit(tmp_path, quantise)
    reconfigure(tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    loaded = weights(load(tmp_path, torch.float32))
    assert len(plain) == 4 and all(torch.equal(loaded[name], plain[name]) for name in plain)
    edit(tmp_path, lambda t: t.pop("model.layers.1.mlp.experts.down_proj_scales"))
    with pytest.raises(CheckpointError, match=r"experts\.down_proj_scales' is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "awq"}, "quantization method 'awq'"),
        ({**FP8, "fmt": "e5m2"}, "fp8 format 'e5m2'"),
        ({**FP8, "weight_block_size": None}, "weight_block_size None"),
        ({**FP8, "activation_scheme": "static"}, "activation_scheme 'static'"),
        ({**INT8, "format": "marlin-24"}, "format 'marlin-24'"),
        ({**INT8, "config_groups": {"g": {"weights": {"num_bits": 4}}}}, "8-bit int, symmetric"),
        ({"quant_method": "mxfp4"}, "'mxfp4' is not supported for qwen3_moe"),
    ],
)
def test_an_unknown_storage_is_refused_by_name(folder: Path, quantisation: dict, message: str) -> None:
    reconfigure(folder, quantization_config=quantisation)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


# ---------------------------------------------------------------- memory

MEMORY = """
import resource, sys, threading, torch
from pathlib import Path
from ridgepoint.models.checkpoint import load
def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path('/proc/self/status').open() if line.startswith(key))
load(sys.argv[1])  # imports, thread pools
before = status('VmRSS')
Path('/proc/self/clear_refs').write_text('5')  # the peak starts again here
decoder = load(sys.argv[2], torch.bfloat16)
peak = status('VmHWM')
print(peak - before, sum(p.numel() * p.element_size() for p in decoder.parameters()))
"""


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_peak_memory_is_the_weights_and_little_more(original: Path, tmp_path: Path, stored: torch.dtype) -> None:
    """In a process of its own, a model large enough (about 120 MB) that constants do not matter."""
    config = {"hidden_size": 256, "num_hidden_layers": 4, "num_experts": 24, "num_experts_per_tok": 2, "vocab_size": 4096,
              "moe_intermediate_size": 768, "head_dim": 64}  # fmt: skip
    from transformers import AutoConfig, AutoModelForCausalLM

    model_config = AutoConfig.for_model("qwen3_moe", **{**parity.BASE, **config})
    AutoModelForCausalLM.from_config(model_config, dtype=stored).save_pretrained(tmp_path, max_shard_size="20MB")
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(original), str(tmp_path)],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PATH": ""},
    ).stdout  # fmt: skip
    extra_bytes, weight_bytes = map(int, out.split())
    assert weight_bytes > 100e6
    assert extra_bytes <= 1.15 * weight_bytes
