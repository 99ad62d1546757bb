"""Exported folders: `transformers` and the project's own decoder read them to the same logits as training computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import tiny, toml_text, write_library
from typer.testing import CliRunner

from ridgepoint.errors import CheckpointError, ConfigError
from ridgepoint.models.checkpoint import load
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.context import CausalContext
from ridgepoint.train.export import export, quantise_rows
from ridgepoint.train.family import spec_of
from ridgepoint.train.ops import TrainingOps
from ridgepoint.train.plain import write_plain
from ridgepoint.train.vocabulary import train_tokenizer
from ridgepoint.train.weights import correction_biases, initial_masters

# float32 everywhere, sums in another order: relative to the range of the logits
LOGIT_TOLERANCE_FRAC = 1e-4
MODEL = tiny().model
TOKENIZER = train_tokenizer(["def f(self):\n    return self.value\n" * 5], 300)


def _decoder() -> Decoder:
    decoder = initial_masters(spec_of(MODEL, 300), 7)
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, tensor in decoder.named_parameters():
            if "norm" in name:
                tensor += 0.3 * torch.randn(tensor.shape, generator=draw)
        for tensor in correction_biases(decoder).values():
            tensor += 0.2 * torch.randn(tensor.shape, generator=draw)
    return decoder


def _logits(decoder: Decoder, ids_BS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(TrainingOps(compiled=False).hidden(decoder, ids_BS))


def _close(got: torch.Tensor, want: torch.Tensor) -> None:
    span = float(want.max() - want.min())
    assert float((got - want).abs().max()) <= LOGIT_TOLERANCE_FRAC * span


def test_transformers_and_the_decoder_agree_with_training(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained = _decoder()
    export(tmp_path, model=MODEL, decoder=trained, tokenizer=TOKENIZER, storage="float32", card="# tiny\n")
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(9))
    want = _logits(trained, ids)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "Glm4MoeForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        _close(theirs(ids).logits.view_as(want), want)
    decoder = load(tmp_path, torch.float32)
    with torch.no_grad():
        _close(decoder(ids.flatten(), CausalContext(2, 40)), want)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = words("def f(self):\n    return")["input_ids"]
    assert prompt[0] == words.bos_token_id == words.eos_token_id == 0  # a prompt is the beginning of a file
    assert words.decode(prompt, skip_special_tokens=True) == "def f(self):\n    return"
    chat = words.apply_chat_template([{"role": "user", "content": "def f"}], tokenize=False)
    assert chat == "<|endoftext|>def f"


def test_int8_is_the_weights_rounded_by_row(tmp_path: Path) -> None:
    trained = _decoder()
    for storage, name in (("float32", "plain"), ("int8", "small")):
        export(tmp_path / name, model=MODEL, decoder=trained, tokenizer=TOKENIZER, storage=storage, card="")  # type: ignore[arg-type]
    plain, small = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "small"))
    scales = {name for name in small if name.endswith("_scale")}
    assert {f"{name}_scale" for name in plain if name.endswith("_proj.weight") or name == "lm_head.weight"} == scales
    for name in scales:
        weight, scale = small[name.removesuffix("_scale")], small[name].float()
        assert weight.dtype == torch.int8
        assert (weight.abs().amax(1) >= 126).all()
        error = (weight.float() * scale - plain[name.removesuffix("_scale")]).abs()
        assert (error <= 0.51 * scale + 127 * scale * 2**-8 * (weight.abs() == 127)).all()
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        got = load(tmp_path / "small", torch.float32)(ids.flatten(), CausalContext(1, 40)).log_softmax(-1)
    want = _logits(trained, ids).log_softmax(-1)
    assert float((want.exp() * (want - got)).sum(-1).mean()) < 0.01  # nats of KL; routing may flip near ties


def test_a_plain_copy_of_int8_reads_the_same(tmp_path: Path) -> None:
    trained = _decoder()
    small, plain = tmp_path / "small", tmp_path / "plain"
    export(small, model=MODEL, decoder=trained, tokenizer=TOKENIZER, storage="int8", card="# tiny\n")
    write_plain(small, plain)
    one, two = (load(folder, torch.bfloat16).state_dict() for folder in (small, plain))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(CheckpointError, match="not quantised"):
        write_plain(plain, tmp_path / "again")


def test_a_row_of_zeros_stays_zero() -> None:
    weight, scale = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert torch.equal(weight[0], torch.zeros(2, dtype=torch.int8))
    assert weight[1, 1] == -127
    assert torch.isfinite(scale.float()).all()


def test_the_command_trains_exports_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from ridgepoint.cli.train import register
    from ridgepoint.train import corpus

    library = tmp_path / "lib"
    library.mkdir()
    write_library(library)
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(library))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(toml_text())
    app = typer.Typer()
    register(app)
    common = [str(recipe), "--out", str(tmp_path / "run"), "--json"]
    partial = CliRunner().invoke(app, [*common, "--stop-after", "2"])
    assert partial.exit_code == 130
    assert json.loads(partial.stdout)["finished"] is False
    whole = CliRunner().invoke(app, common)
    assert whole.exit_code == 0, whole.output
    facts = json.loads(whole.stdout)
    assert facts["step"] == 6 and facts["finished"]
    for name in ("bf16", "int8"):
        folder = Path(facts["exported"][name])
        assert load(folder, torch.bfloat16).spec.vocab_size == 300
        assert "Held out" in (folder / "README.md").read_text()
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"rows": {"shipped int8": {"bits_per_byte": 1.25}}}))
    assert CliRunner().invoke(app, [*common, "--export-only", "--evaluation", str(figures)]).exit_code == 0
    assert "| shipped int8 | 1.250 |" in (tmp_path / "run" / "int8" / "README.md").read_text()
    figures.write_text("{}")
    broken = CliRunner().invoke(app, [*common, "--export-only", "--evaluation", str(figures)])
    assert isinstance(broken.exception, ConfigError)
