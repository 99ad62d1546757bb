"""Tables of tiles: read, preferred, refused, written; and the tuner that makes them, with a clock of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from products import DEVICE

import tune_kernels
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import tuner, tuning
from ridgepoint.kernels.device_weight import FORMATS
from ridgepoint.kernels.tuning import Choice, Tile

HERE = torch.device("cpu")
TILE = Tile(kernel="weights", block_n=64, block_k=128, group=8, num_warps=4, num_stages=3, per_processor=2)


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table is one of the test's; what was read is forgotten before and after."""
    path = tmp_path / "tuned.toml"
    monkeypatch.setenv("RIDGEPOINT_TUNED", str(path))
    tuning.forget()
    yield path
    tuning.forget()


def test_the_shipped_table_serves_every_format_at_every_size() -> None:
    for kind in {"bf16", *(fmt.split("-")[0] for fmt in FORMATS)}:
        for rows in (0.06, 1, 8, 9, 100, 2048, 1e6):
            for product in tuning.PRODUCTS:
                choice = tuning.choose(product, kind, rows, (2048, 1536), HERE)
                assert rows <= choice.rows_up_to and choice.figure.startswith(("estimate_", "measure_"))
                assert kind == "bf16" or choice.first.block_k == 128, "codes come in blocks of 128"
    assert tuning.choose("experts", "bf16", 0.5, (1, 1), HERE).block_m == 16
    with pytest.raises(ConfigError, match="no tile for experts of int3"):
        tuning.choose("experts", "int3", 1, (1, 1), HERE)


def test_what_was_measured_here_is_preferred_until_the_kernels_change(table: Path) -> None:
    measured = Choice(
        product="experts",
        kind="bf16",
        rows_up_to=8,
        block_m=32,
        first=TILE,
        second=TILE,
        shape=(2048, 1536),
        figure="measure_s 1e-5",
    )
    tuning.write_table(table, "NVIDIA H200", [measured])
    assert tuning.read_table(table) == [measured]
    assert tuning.choose("experts", "bf16", 3, (2048, 1536), HERE) == measured
    assert tuning.choose("experts", "bf16", 3, (4096, 1536), HERE).figure.startswith("estimate_"), "another shape"
    table.write_text(table.read_text().replace(tuning.source_hash(), "0" * 16))
    tuning.forget()
    assert tuning.stale(table) == "the kernels have changed since"
    assert tuning.choose("experts", "bf16", 3, (2048, 1536), HERE).figure.startswith("estimate_")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 1", "unknown keys speed"),
        ("[tile.a]\nblock_m = 3", "unknown keys of a tile: block_m"),
        ("[tile.a]\nblock_n = 3", "missing"),
        ('[[choice]]\nproduct = "experts"\nfirst = "b"', "tile 'b' is not defined"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        tuning.read_table(tmp_path / "t.toml")


def test_tiles_are_checked() -> None:
    for wrong in ({"kernel": "magic"}, {"block_n": 48}, {"num_stages": 0}):
        with pytest.raises(ConfigError):
            Tile(**{**TILE.__dict__, **wrong})


def test_the_tuner_keeps_the_fastest_tile_and_the_table_reads_back(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Tile(**{**TILE.__dict__, "num_stages": 1})
    monkeypatch.setattr(tuner, "tiles", lambda *_: [slow, TILE])
    times = iter([3.0, 1.0, 2.0, 4.0])  # first product: the second tile; second product: the first

    def measure(run: Callable[[], object]) -> float:
        run()
        return next(times)

    shape = tuner.ExpertsShape(d_model=32, width=32, num_experts=2, top_k=1, tokens=(2,))
    (choice,) = tuner.tune_experts(shape, "bf16", torch.device(DEVICE), measure, lambda _: None)
    assert (choice.first, choice.second, choice.shape) == (TILE, slow, (32, 64))
    assert choice.figure == "measure_s 3.000e+00 at 2 tokens"
    tuning.write_table(table, "NVIDIA H200", [choice])
    assert tuning.read_table(table) == [choice]


def test_a_tile_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([torch.ones(8, 4), torch.full((8, 4), 1.5)])
    monkeypatch.setattr(tuner.Product, "run", lambda self: next(results))
    product = tuner.Product(
        x=torch.ones(8, 4), w=torch.ones(4, 4), bias=None, tile=TILE, block_m=16, out_dtype=torch.float32
    )
    with pytest.raises(tuner.TunerError, match="differs"):
        tuner._best_tile(product, [TILE, TILE], lambda run: 1.0, lambda _: None)


def test_the_script_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["tune_kernels.py", "--smoke"])
    monkeypatch.setattr(tuner, "tiles", lambda *_: [TILE])
    tune_kernels.main()
    assert "experts bf16 64x64, 2 tokens: measure_s" in capsys.readouterr().out
    assert not table.exists()
