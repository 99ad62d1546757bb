"""Error compensation: less output error than rounding on the inputs it was given, through every family's layers."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch

from ridgepoint.catalog.families import read_checkpoint_config
from ridgepoint.models.checkpoint import load
from ridgepoint.models.source import open_source
from ridgepoint.nn.context import CausalContext
from ridgepoint.quantize.calibrate import MIN_TOKENS_PER_INPUT, ActivationAware, sequences
from ridgepoint.quantize.compensate import compensate, output_loss, search_scales
from ridgepoint.quantize.convert import convert
from ridgepoint.quantize.formats import FORMATS, format_named
from ridgepoint.quantize.matrices import matrices_of, read_matrix
from ridgepoint.quantize.rounding import round_to_nearest


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", FORMATS)
def test_outputs_lose_less_than_by_rounding(fmt: str) -> None:
    """Correlated inputs with a few loud channels, as activations are; widths that no group and no block divides."""
    w, x = random(48, 200, seed=1), random(900, 200, seed=2) @ random(200, 200, seed=3) * random(200, seed=4).exp()
    moment = x.T @ x / len(x)
    rounded, fitted = round_to_nearest(w, FORMATS[fmt]), compensate(w, moment, FORMATS[fmt])
    assert output_loss(w, fitted, moment) < 0.5 * output_loss(w, rounded, moment)
    by_definition = (x @ (fitted.dense() - w).T).square().sum() / (x @ w.T).square().sum()
    assert output_loss(w, fitted, moment) == pytest.approx(float(by_definition), rel=1e-3)
    assert fitted.codes_OI.dtype == rounded.codes_OI.dtype and fitted.scales_ON.shape == rounded.scales_ON.shape


@pytest.mark.parametrize("fmt", FORMATS)
def test_without_correlations_it_rounds_to_nearest(fmt: str) -> None:
    """Nothing later can make up for a loss then, so only the scales are better."""
    w = random(32, 96, seed=5)
    for moment in (torch.eye(96), torch.zeros(96, 96)):
        fitted = compensate(w, moment, FORMATS[fmt])
        assert torch.equal(fitted.scales_ON, search_scales(w, torch.ones(96), FORMATS[fmt]))
        rounded = round_to_nearest(w, FORMATS[fmt])
        assert (fitted.dense() - w).square().sum() <= (rounded.dense() - w).square().sum()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("aware")
    return {family: checkpoints.write(root / family, family, num_hidden_layers=2) for family in checkpoints.FAMILIES}


def calibration(rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 128, (rows, 64), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(folder: Path, ids_BS: torch.Tensor) -> torch.Tensor:
    return load(folder, torch.float32)(ids_BS.flatten(), CausalContext(*ids_BS.shape))


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_every_family_is_calibrated_through_its_own_layers(
    sources: dict[str, Path], tmp_path: Path, family: str
) -> None:
    ids = calibration()
    fmt = format_named("int4-g32")
    convert(sources[family], tmp_path / "rtn", fmt)
    report = convert(
        sources[family],
        tmp_path / "aware",
        fmt,
        make_method=lambda source, config: ActivationAware(source, config, ids),
    )
    assert report["method"] == "activation-aware" and report["calibration_tokens"] == ids.numel()
    assert set(report["relative_output_loss"]) == set(report["relative_rms_error"])
    truth = logits(sources[family], ids)
    lost = {name: float((logits(tmp_path / name, ids) - truth).square().mean()) for name in ("rtn", "aware")}
    assert lost["aware"] < lost["rtn"]


@torch.no_grad()
def test_what_a_matrix_is_fitted_to_is_what_flows_into_it(sources: dict[str, Path]) -> None:
    """Moments gathered layer by layer against those of the whole model, with every matrix left as it is."""
    source = open_source(sources["glm4_moe"])
    config = read_checkpoint_config(source.config)
    ids = calibration(2)
    method = ActivationAware(source, config, ids)
    whole = load(sources["glm4_moe"], torch.float32)
    seen: dict[str, torch.Tensor] = {}
    for name, module in whole.named_modules():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    whole(ids.flatten(), CausalContext(*ids.shape))
    checked = 0
    for matrix in matrices_of(source, config, format_named("int4-g32"), ()):
        method._advance(matrix.layer)
        path = matrix.pieces[0].param.rpartition(".")[0]
        if path in seen and "experts" not in path:
            x = seen[path]
            assert torch.allclose(method._moment_of(matrix, None), x.T @ x / len(x), rtol=1e-3, atol=1e-5), path
            checked += 1
    assert checked > 10 and read_matrix(source, matrix, None).shape == (128, 160)


@torch.no_grad()
def test_an_expert_few_tokens_reach_is_given_those_it_would_have_had_next(sources: dict[str, Path]) -> None:
    source = open_source(sources["qwen3_moe"])
    config = read_checkpoint_config(source.config)
    method = ActivationAware(source, config, calibration(8))
    method._advance(0)
    x_TD, _, ids_TK = method._capture("layers.0.ffn.experts")
    router = method._decoder.get_submodule("layers.0.ffn.router")
    own = (ids_TK == 3).any(-1)
    fewest = MIN_TOKENS_PER_INPUT * 160
    assert int(own.sum()) < fewest < len(x_TD)
    given = method._expert_inputs("layers.0.ffn.experts", 3, down=False)
    logits_T = router.logits(x_TD)[:, 3]
    worst = (logits_T[~own].sort(descending=True).values)[fewest - int(own.sum()) - 1]
    expected = x_TD[own | (logits_T >= worst)]
    assert torch.equal(given, expected) and len(given) == fewest and method.topped_up == 1


def test_sequences() -> None:
    assert sequences(list(range(10)), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sequences([1, 2], 4).tolist() == [[1, 2]]
