"""Written checkpoints: they load as what rounding gives, in every family and format; and the folder is whole or absent."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgepoint.errors import CheckpointError, ConfigError
from ridgepoint.models.checkpoint import load, to_checkpoint
from ridgepoint.quantize import convert as convert_module
from ridgepoint.quantize import folder as folder_module
from ridgepoint.quantize.convert import RoundToNearest, convert
from ridgepoint.quantize.folder import CheckpointFolder
from ridgepoint.quantize.formats import FORMATS, format_named
from ridgepoint.quantize.rounding import round_to_nearest


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {family: checkpoints.write(root / family, family) for family in checkpoints.FAMILIES}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return to_checkpoint(load(folder, torch.float32))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_what_is_written_loads_as_what_was_rounded(
    sources: dict[str, Path], tmp_path: Path, family: str, fmt: str
) -> None:
    report = convert(sources[family], tmp_path / "out", format_named(fmt))
    before, after = tensors(sources[family]), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [
        name for name in changed if "norm" in name or "embed" in name or "router" in name or "mlp.gate." in name
    ]
    experts = [name for name in before if "experts" in name and not name.endswith("bias")]
    assert set(experts) <= changed
    for name in changed - {"lm_head.weight"}:
        stack = before[name] if before[name].dim() == 3 else before[name][None]
        if family == "gpt_oss" and before[name].dim() == 3:
            stack = stack.transpose(1, 2)
        rounded = torch.stack([round_to_nearest(w.contiguous(), FORMATS[fmt]).dense() for w in stack])
        got = after[name].view(rounded.shape) if family != "gpt_oss" or after[name].dim() < 3 else after[name].mT
        assert torch.equal(got, rounded), name
    assert ("lm_head.weight" in changed) == (fmt.startswith("int") and family != "granitemoe")  # which ties it
    assert (tmp_path / "out" / "tokenizer.json").exists() and not (tmp_path / "out" / "run.py").exists()
    assert report["target_bytes"] < report["source_bytes"]


def test_shards_and_index(sources: dict[str, Path], tmp_path: Path) -> None:
    convert(sources["qwen3_moe"], tmp_path / "one", format_named("int4-g32"))
    convert(sources["qwen3_moe"], tmp_path / "many", format_named("int4-g32"), shard_bytes=40_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


def test_excluded_matrices_stay(sources: dict[str, Path], tmp_path: Path) -> None:
    convert(sources["qwen3_moe"], tmp_path / "out", format_named("int4-g32"), exclude=["*.o_proj", "lm_head.weight"])
    before, after = tensors(sources["qwen3_moe"]), tensors(tmp_path / "out")
    for name in before:
        kept = "o_proj" in name or "lm_head" in name
        assert not kept or torch.equal(before[name], after[name])
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"lm_head", "model.layers.1.self_attn.o_proj", "model.layers.0.mlp.gate"} <= set(ignored)
    with pytest.raises(ConfigError, match=r"--exclude 'nothing' names no matrix.*hint"):
        convert(sources["qwen3_moe"], tmp_path / "other", format_named("int4-g32"), exclude=["nothing"])


def test_a_quantised_source_is_said_to_be_one(sources: dict[str, Path], tmp_path: Path) -> None:
    first = convert(sources["qwen3_moe"], tmp_path / "int8", format_named("int8"))
    again = convert(tmp_path / "int8", tmp_path / "again", format_named("int8"), exclude=["*down_proj*"])
    assert not first["notes"] and "quantised itself" in again["notes"][0]
    one, two = tensors(tmp_path / "int8"), tensors(tmp_path / "again")
    for name in one:
        assert torch.equal(two[name], one[name].bfloat16().float() if "down_proj" in name else one[name]), name


# ---------------------------------------------------------------- whole or absent


def test_nothing_is_overwritten(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        convert(sources["qwen3"], tmp_path / "out", format_named("int8"))
    with pytest.raises(ConfigError, match="is no folder"):
        convert(sources["qwen3"], tmp_path / "a" / "out", format_named("int8"))


class Interrupted(RoundToNearest):
    def __init__(self, after: int) -> None:
        self.left = after

    def codes(self, *arguments):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().codes(*arguments)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(after=st.integers(0, 14))
def test_ctrl_c_leaves_nothing(sources: dict[str, Path], tmp_path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(sources["qwen3"], tmp_path / "out", format_named("int8"), shard_bytes=20_000,
                make_method=lambda source, config: Interrupted(after))  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"out cannot be written: No space left on device \(hint: nothing"):
        convert(sources["qwen3"], tmp_path / "out", format_named("int8"))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_sure_to_fill_is_refused_first(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module.os, "statvfs", lambda path: SimpleNamespace(f_bavail=2, f_frsize=512))
    with pytest.raises(CheckpointError, match=r"out needs [\d.]+ kB and its disk has 1.02 kB free"):
        convert(sources["qwen3"], tmp_path / "out", format_named("int8"))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    killed = tmp_path / ".out.partial-1"
    killed.mkdir()
    (killed / "shard-0.safetensors").write_text("half")
    with CheckpointFolder(tmp_path / "out") as running:
        assert not killed.exists()
        running.add({"a": torch.ones(3)})
        (mine,) = tmp_path.glob(".out.partial-*")
        running._remove_abandoned()
        assert mine.is_dir()
        running.commit({"model_type": "x"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoints.write(tmp_path / "bad", "qwen3")
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight' holds numbers that are not finite"):
        convert(folder, tmp_path / "out", format_named("fp8-block"))


def test_a_stored_shape_that_disagrees_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    convert(sources["qwen3"], tmp_path / "out", format_named("int4-g32"))
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    stored["model.layers.0.mlp.up_proj.weight_shape"][1] += 1
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"weight_shape' says \[96, 161\]; the config asks for \[96, 160\]"):
        load(tmp_path / "out")
    stored["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(96, 7)
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"\[7\] scales for a row of 160 inputs fit no scheme"):
        load(tmp_path / "out")


def test_configs_are_those_other_readers_take(sources: dict[str, Path], tmp_path: Path) -> None:
    """`transformers` reads fp8 and mxfp4 settings without further packages; the others need compressed-tensors."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    for fmt, family in (("fp8-block", "qwen3_moe"), ("mxfp4", "gpt_oss")):
        convert(sources[family], tmp_path / fmt, format_named(fmt))
        written = json.loads((tmp_path / fmt / "config.json").read_text())["quantization_config"]
        parsed = AutoQuantizationConfig.from_dict(written)
        assert "lm_head" in parsed.modules_to_not_convert
