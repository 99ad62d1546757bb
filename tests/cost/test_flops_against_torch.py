"""FLOP formulas against torch's own counter, on tiny real models of every family."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
parity = pytest.importorskip("parity")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ridgepoint.catalog.families import read_checkpoint_config  # noqa: E402
from ridgepoint.cost.flops import attention_flops, head_flops_per_row, linear_flops_per_token  # noqa: E402

TOKENS = 48


@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: case.name)
def test_formula_equals_the_counter(case: parity.Case, tmp_path: Path) -> None:
    """The counter counts the masked half of attention too (and whole windows), so the formula is asked for all pairs."""
    theirs = parity.make_checkpoint(case, tmp_path)
    theirs.config._experts_implementation = "eager"  # the counter does not know grouped products
    spec = read_checkpoint_config(json.loads((tmp_path / "config.json").read_text())).spec
    unmasked = replace(spec, layers=tuple(replace(layer, window=None) for layer in spec.layers))
    all_pairs = 2.0 * attention_flops(unmasked, float(TOKENS))
    expected = linear_flops_per_token(spec) * TOKENS + all_pairs + head_flops_per_row(spec) * TOKENS
    ids = torch.randint(0, 128, (1, TOKENS), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        theirs(ids, use_cache=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
