"""Runs: stopped and resumed ones make the same bytes, whatever the number of workers; signals save; folders are guarded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny_recipe import tiny, write_library

from ridgepoint.errors import TrainingError
from ridgepoint.train import checkpoint
from ridgepoint.train.checkpoint import checkpoint_paths, write_atomically
from ridgepoint.train.loop import run


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    root.mkdir()
    return write_library(root)


def _bytes(folder: Path) -> dict[str, bytes]:
    tensors = load_file(checkpoint_paths(folder)[-1])
    return {
        name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items() if tensor.ndim
    }


def test_three_and_three_steps_are_six(tmp_path: Path, library: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(tiny(run={"workers": 1}), whole, root=library).finished
    assert not run(tiny(), halves, root=library, stop_after=3).finished
    assert run(tiny(), halves, root=library).finished
    assert _bytes(whole) == _bytes(halves)


def test_the_log_is_readable_and_the_loss_falls(tmp_path: Path, library: Path) -> None:
    run(tiny(run={"steps": 30, "log_every_steps": 5, "evaluate_every_steps": 30}), tmp_path / "run", root=library)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "nats_per_token" in line]
    assert [line["step"] for line in steps] == [5, 10, 15, 20, 25, 30]
    assert steps[-1]["nats_per_token"] < steps[0]["nats_per_token"] - 0.5
    assert [line["event"] for line in lines if "event" in line] == ["start", "held_out", "finished"]


def test_a_killed_process_goes_on_from_its_checkpoint(tmp_path: Path, library: Path) -> None:
    """SIGTERM in the middle of a long run: it saves, says so, and the run goes on to the same bytes."""
    script = (
        "import sys; from pathlib import Path; from tiny_recipe import tiny; from ridgepoint.train.loop import run;"
        "print(run(tiny(run={'steps': 400, 'log_every_steps': 1}), Path(sys.argv[1]), root=Path(sys.argv[2])).step)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")])
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run"), str(library)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    out, talk = process.communicate(timeout=60)
    assert process.returncode == 0, talk
    stopped = int(out)
    assert 3 <= stopped < 400
    assert "stopped" in talk
    recipe = tiny(run={"steps": 400, "log_every_steps": 1})
    assert run(recipe, tmp_path / "run", root=library, stop_after=stopped + 2).step == stopped + 2
    assert run(recipe, tmp_path / "whole", root=library, stop_after=stopped + 2).step == stopped + 2
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_a_folder_belongs_to_one_recipe_and_one_corpus(tmp_path: Path, library: Path) -> None:
    run(tiny(), tmp_path / "run", root=library, stop_after=1)
    with pytest.raises(TrainingError, match="recipe_sha256"):
        run(tiny(optimizer={"lr": 1e-3}), tmp_path / "run", root=library)
    (library / "abc.py").write_text("# another\n")
    with pytest.raises(TrainingError, match="corpus_sha256"):
        run(tiny(), tmp_path / "run", root=library)


def _former_name(name: str) -> str:
    """As checkpoints called the tensors of `tiny` when training had names of its own."""
    leaves = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
        "mixer_norm.weight": "input_layernorm.weight",
        "mixer.qkv.weight": "self_attn.qkv_proj.weight",
        "mixer.q_norm.weight": "self_attn.q_norm.weight",
        "mixer.k_norm.weight": "self_attn.k_norm.weight",
        "mixer.o.weight": "self_attn.o_proj.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "ffn.gate_up.weight": "mlp.gate_up_proj.weight",
        "ffn.down.weight": "mlp.down_proj.weight",
        "ffn.router.weight": "mlp.gate.weight",
        "ffn.router.correction_E": "mlp.gate.e_score_correction_bias",
        "ffn.experts.w_gate_up_E2FD": "mlp.experts.gate_up_proj",
        "ffn.experts.w_down_EDF": "mlp.experts.down_proj",
        "ffn.shared.ffn.gate_up.weight": "mlp.shared_experts.gate_up_proj.weight",
        "ffn.shared.ffn.down.weight": "mlp.shared_experts.down_proj.weight",
    }
    match = re.fullmatch(r"(master\.|bias\.|adamw\.\w+\.)(layers\.\d+\.)?(.+)", name)
    assert match is not None
    group, layer, leaf = match.groups()
    return group + (f"model.{layer}" if layer else "") + leaves[leaf]


def test_a_checkpoint_with_former_names_goes_on(tmp_path: Path, library: Path) -> None:
    for name in ("run", "former"):
        run(tiny(), tmp_path / name, root=library, stop_after=3)
    (path,) = checkpoint_paths(tmp_path / "former")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    renamed = {name if name == "rng" else _former_name(name): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    assert "master.model.layers.1.mlp.experts.gate_up_proj" in renamed
    save_file(renamed, path, metadata)
    for name in ("run", "former"):
        run(tiny(), tmp_path / name, root=library)
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "former")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_said_and_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    path = tmp_path / "step-00000001.safetensors"
    write_atomically({"x": torch.ones(3)}, {}, path)

    def full(*arguments: object) -> None:
        Path(str(arguments[1])).write_bytes(b"half")
        raise fault

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"step-00000001.safetensors cannot be written: No space left on device$"):
        write_atomically({"x": torch.zeros(3)}, {}, path)
    assert torch.equal(load_file(path)["x"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_on_a_full_disk_keeps_whole_lines(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    code = f"""
import resource, signal
from ridgepoint.train.progress import RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
with RunLog(Path({str(tmp_path / "log.jsonl")!r}), total_steps=1, done_steps=0) as log:
    for step in range(10):
        log.event("start", step=step)
"""
    done = subprocess.run([sys.executable, "-c", "from pathlib import Path" + code], capture_output=True, text=True)
    assert "TrainingError" in done.stderr and "log.jsonl cannot be written" in done.stderr
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    assert lines and [json.loads(line)["step"] for line in lines] == list(range(len(lines))) and lines[-1][-1] == "\n"


def test_divergence_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, library: Path) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        run(tiny(run={"steps": 40}, optimizer={"lr": 1e30, "warmup_steps": 1}), tmp_path / "run", root=library)
